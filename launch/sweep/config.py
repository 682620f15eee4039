"""Every setting of a sweep; the docstrings are the help texts."""

from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from fdtrain.config import Config, UserError
from fdtrain.config.checks import all_in_range, in_range
from fdtrain.metrics.names import LEVELS, LOWER_IS_BETTER, METRICS, SELECTION_METRIC, metric_name

SECTIONS = {each.name for each in fields(Config) if is_dataclass(each.default_factory)}
"""Of the training's configuration: `--data.root ROOT` is a word for it."""


@dataclass
class SearcherConfig:
    """How the next trial is chosen.

    Args:
        kind: `tpe`: Optuna's tree-structured Parzen estimator (Bergstra et al., 2011), which learns from the trials
            before; `random`.
        startup_trials: Trials at random before TPE begins to learn.
    """

    kind: Literal["tpe", "random"] = "tpe"
    startup_trials: int = 10


@dataclass
class SchedulerConfig:
    """Which trials are stopped early.

    Args:
        kind: `asha` (Li et al., 2020): after `grace_epochs`, then `reduction_factor` times as many, and so on, a trial
            goes on if it is among the best 1/`reduction_factor` of those that came so far; `none` stops nothing.
        grace_epochs: Epochs that every trial has.
        reduction_factor: How many trials one is chosen from.
    """

    kind: Literal["asha", "none"] = "asha"
    grace_epochs: int = 1
    reduction_factor: int = 3


@dataclass
class SweepConfig:
    """Every setting of a sweep.

    Args:
        base: The training's configuration, such as configs/meso4.yaml.
        settings: Keys of it that all trials have otherwise, such as `{data.root: /data/shards, train.epochs: 12}`.
        space: Keys that are searched, each with its range: `{uniform: [low, high]}`, `{loguniform: [low, high]}`,
            `{quniform: [low, high, step]}`, `{int: [low, high]}` or `{choice: [a, b]}`; a bound may be another key.
        searcher: How the next trial is chosen.
        scheduler: Which trials are stopped early.
        metric: Validation metric that trials are compared by: `val/<video|frame>/<metric>`.
        mode: `max` or `min`. Default: as is better for that metric.
        trials: Trials of each quality.
        workers: Processes of one trial.
        cpus_per_worker: CPU cores of each; also its compute and decoding threads.
        gpus_per_worker: GPUs of each; a fraction where several trials of one worker share a GPU. Default: 1 where
            the cluster has GPUs, else 0.
        max_concurrent: Trials at a time at most. Default: as many as the cluster has room for.
        max_failures: How often a trial that crashed is started again, from its last checkpoint. One whose settings
            are the reason (it diverged, or they are refused) is not.
        storage: Folder that every node sees; the sweep is the folder `name` in it.
        name: Of the sweep, also in MLflow. Default: `<model>-sweep`.
        best_dir: Folder for the best settings of each quality, `<model>-q<quality>.yaml`.
        register: Register the model of the best trial as `fdtrain-<model>-q<quality>`.
        calibrate: Try some steps of the base first, to say how long the sweep will take.
        address: Of a Ray cluster that is there, `auto` or host:port; the variable RAY_ADDRESS says the same. Default:
            one of this host's own, for the time of the sweep.
        seed: Of the search; that of the trainings is `settings: {seed: N}`.
    """

    base: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    searcher: SearcherConfig = field(default_factory=SearcherConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    metric: str = SELECTION_METRIC
    mode: Literal["max", "min"] | None = None
    trials: int = 16
    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = None
    max_concurrent: int | None = None
    max_failures: int = 2
    storage: str = "runs/sweeps"
    name: str | None = None
    best_dir: str = "configs/best"
    register: bool = True
    calibrate: bool = True
    address: str | None = None
    seed: int = 0

    @property
    def maximize(self) -> bool:
        """Whether higher is better."""
        if self.mode is not None:
            return self.mode == "max"
        return self.metric.split("/")[2] not in LOWER_IS_BETTER

    def validate(self) -> None:
        """Check what a type can't say. Raises UserError for the first setting that is out of range."""
        if not self.base:
            raise UserError("base: no training is named; give its configuration, such as configs/meso4.yaml")
        if not Path(self.base).is_file():
            raise UserError(
                f"base: {self.base}: no such file; give a training's configuration, such as configs/meso4.yaml"
            )
        counts = {
            "trials": self.trials,
            "workers": self.workers,
            "cpus_per_worker": self.cpus_per_worker,
            "max_concurrent": self.max_concurrent,
            "searcher.startup_trials": self.searcher.startup_trials,
            "scheduler.grace_epochs": self.scheduler.grace_epochs,
        }
        all_in_range(counts, 1)
        in_range("scheduler.reduction_factor", self.scheduler.reduction_factor, 2)
        in_range("max_failures", self.max_failures, 0)
        in_range("seed", self.seed, 0, 2**32 - 1)
        in_range("gpus_per_worker", self.gpus_per_worker, 0)
        gpus = self.gpus_per_worker or 0
        if gpus == float("inf"):
            raise UserError("gpus_per_worker: inf is no number of GPUs; give one, or null for one where there are any")
        if gpus != int(gpus) and (gpus > 1 or self.workers > 1):
            raise UserError(
                f"gpus_per_worker: {gpus:g}: a part of a GPU is for trials of one worker alone, and below 1; "
                f"take a whole number, or workers: 1"
            )
        if "://" in self.storage:
            raise UserError(
                f"storage: {self.storage} is a URL; run folders with checkpoints need a folder that every node sees"
            )
        self._check_metric()

    def _check_metric(self) -> None:
        # Those at the chosen threshold would be measured on the split that it was chosen on.
        names = [metric for metric in METRICS if not metric.endswith("_chosen")]
        reported = [metric_name("val", level, metric) for level in LEVELS for metric in names]
        if self.metric not in reported:
            close = get_close_matches(self.metric, reported, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"a validation reports {', '.join(reported)}"
            raise UserError(f"metric: {self.metric} is never reported; {hint}")
