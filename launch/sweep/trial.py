"""What Ray Tune runs: a trial, which is a `TorchTrainer` and what becomes of its failures.

Imports Ray, so it is imported where a search begins.
"""

from typing import Any

import ray.train
from ray import tune
from ray.train import ScalingConfig
from ray.tune.integration.ray_train import TuneReportCallback

from datasets_shards.schema import ShardSetError
from fdtrain.config import HostError, TransientError, UserError
from launch.sweep.plan import Plan
from launch.sweep.worker import OwnGroup, Places, train_trial


def run_trial(task: dict[str, Any], plan: Plan, places: Places) -> None:
    """One trial, from where it stands. What Ray Tune calls.

    A failure that would come again is reported as a result; what Ray makes of an exception is another attempt.
    """
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            # A cleaner for each trial would ask Ray's dashboard, which ray[tune] is without, and never end. The driver
            # itself frees the places of a trial that was stopped: see `Recorder`.
            others = super()._create_default_callbacks()  # type: ignore[misc]
            return [each for each in others if type(each).__name__ != "PlacementGroupCleanerCallback"]

    number = task["number"]
    resources: dict[str, float] = {"CPU": places.cpus}
    if places.gpus:
        resources["GPU"] = places.gpus
    group: Any = OwnGroup()
    callback: Any = TuneReportCallback()
    trainer = Trainer(
        train_trial,
        train_loop_config={
            "words": plan.trial_words(number, task["settings"]),
            "folder": str(plan.trial_folder(number)),
            "metric": plan.sweep.metric,
            "places": places,
        },
        torch_config=group,
        scaling_config=ScalingConfig(
            num_workers=places.workers, use_gpu=bool(places.gpus), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=f"trial-{number:03d}", storage_path=str(plan.folder / "ray"), callbacks=[callback]
        ),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        fault = _would_come_again(error)
        if fault is None:
            raise
        tune.report({"failed": fault})


def _would_come_again(error: ray.train.WorkerGroupError) -> str | None:
    """The reason, where settings or data are to blame; None for what another attempt may get over."""
    for failure in error.worker_failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            name = type(cause).__name__
            if isinstance(cause, HostError | TransientError):
                return None
            if isinstance(cause, UserError | ShardSetError | FloatingPointError) or name == "OutOfMemoryError":
                return " ".join(str(cause).split()) or name
            cause = getattr(cause, "cause", None) or cause.__cause__
    return None
