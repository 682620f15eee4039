"""Settings of a run: its folder, steps, optimizer, engine, checkpoints and records."""

import re
from dataclasses import dataclass
from typing import Literal

from fdtrain.config.checks import UserError, all_in_range, in_range, shares, without_effect
from fdtrain.config.credentials import move_credentials, shown_uri

DEFAULT_TRACKING_URI = "sqlite:///runs/mlflow.db"


@dataclass
class RunConfig:
    """Where a run keeps its files.

    Args:
        dir: Run folder. Default: `runs/<model>-q<quality>`.
        resume: What to do with a run folder that holds a run already: `never` refuses, `auto` goes on from its last
            complete checkpoint (and starts afresh where there is none).
    """

    dir: str | None = None
    resume: Literal["never", "auto"] = "never"


@dataclass
class OptimConfig:
    """Optimizer and learning-rate schedule.

    Args:
        name: `adamw` (decoupled weight decay) or `adam`.
        lr: Peak learning rate.
        weight_decay: For weight matrices; biases and normalization parameters have none.
        betas: Decay rates of Adam's moments.
        eps: Adam's denominator term.
        schedule: After the warm-up: `cosine` down to `min_lr`, or `constant`.
        warmup_steps: Optimizer steps of linear warm-up. Default: a twentieth of the run.
        min_lr: Learning rate at the end of the cosine.
        clip_grad_norm: Largest L2 norm of the gradient; 0 clips nothing.
        ema_decay: Keep an exponential moving average of the weights with this decay, such as 0.999; it is what is
            evaluated, selected and registered then. Early in the run the decay is smaller. Default: none is kept.
    """

    name: Literal["adamw", "adam"] = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int | None = None
    min_lr: float = 0.0
    clip_grad_norm: float = 1.0
    ema_decay: float | None = None

    def validate(self) -> None:
        """Raise UserError for a setting that is out of range."""
        shares({"optim.betas[0]": self.betas[0], "optim.betas[1]": self.betas[1], "optim.ema_decay": self.ema_decay})
        if self.ema_decay == 0:
            raise UserError("optim.ema_decay: 0 keeps no average; set it to null for none")
        limits = {
            "optim.weight_decay": self.weight_decay,
            "optim.warmup_steps": self.warmup_steps,
            "optim.clip_grad_norm": self.clip_grad_norm,
            "optim.eps": self.eps,
        }
        all_in_range(limits, 0)
        if not 0 < self.lr < float("inf"):
            raise UserError(f"optim.lr: {self.lr} is out of range; it is a positive number")
        if not 0 <= self.min_lr <= self.lr:
            raise UserError(f"optim.min_lr: {self.min_lr} is out of range; allowed are 0 to optim.lr")


@dataclass
class TrainConfig:
    """How long, and in what batches.

    Args:
        epochs: Passes over the training split.
        max_steps: Optimizer steps after which the run ends, if that comes before the epochs do.
        max_minutes: Minutes after which the run saves and stops, to be gone on with later. Default: no limit.
        global_batch_size: Samples of one optimizer step, over all ranks.
        micro_batch_size: Samples of one forward pass on one rank. Global batch size = micro-batch size x world size x
            accumulation; the accumulation follows.
        log_every: Optimizer steps between two lines of the log.
        max_nonfinite_steps: Steps that may have a loss or gradient which is not finite; they are skipped, and their
            samples put on record in the run folder. One more ends the run. What fp16 skips to find its scale doesn't
            count.
        test: Score the test split with the best model, once, at the end. The trials of a sweep leave it to the best.
        compile: `torch.compile`: `off`; `on`: of the whole model; `backbone`: of the stages of its EfficientNet, one
            by one, which takes less time. The first steps take minutes; a C++ compiler is needed.
    """

    epochs: int = 10
    max_steps: int | None = None
    max_minutes: float | None = None
    global_batch_size: int = 64
    micro_batch_size: int = 16
    log_every: int = 10
    max_nonfinite_steps: int = 3
    test: bool = True
    compile: Literal["off", "on", "backbone"] = "off"

    def validate(self) -> None:
        """Raise UserError for a setting that is out of range."""
        counts = {
            "train.epochs": self.epochs,
            "train.max_steps": self.max_steps,
            "train.global_batch_size": self.global_batch_size,
            "train.micro_batch_size": self.micro_batch_size,
            "train.log_every": self.log_every,
        }
        all_in_range(counts, 1)
        in_range("train.max_nonfinite_steps", self.max_nonfinite_steps, 0)
        if self.max_minutes is not None and not 0 < self.max_minutes < float("inf"):
            raise UserError(f"train.max_minutes: {self.max_minutes} is out of range; it is a positive number")


@dataclass
class CheckpointConfig:
    """What survives a crash.

    Args:
        every_steps: Optimizer steps between two checkpoints; the end of an epoch writes one as well.
        keep: The newest checkpoints that are kept.
        keep_best: Checkpoints kept beside those for the best `val/video/auc`; the ends of epochs have one.
        background: Write while training goes on, from a copy of the state in main memory; false waits for each write.
        max_failures: Checkpoints in a row that couldn't be written after which the run stops; fewer are warnings.
    """

    every_steps: int = 500
    keep: int = 3
    keep_best: int = 1
    background: bool = True
    max_failures: int = 3

    def validate(self) -> None:
        """Raise UserError for a setting that is out of range."""
        counts = {
            "checkpoint.every_steps": self.every_steps,
            "checkpoint.keep": self.keep,
            "checkpoint.max_failures": self.max_failures,
        }
        all_in_range(counts, 1)
        in_range("checkpoint.keep_best", self.keep_best, 0)


@dataclass
class EngineConfig:
    """What runs an optimizer step.

    Args:
        kind: `ddp`: each rank holds the whole model; `deepspeed`: ZeRO, see the section of that name; `auto` takes DDP
            unless a setting of `deepspeed` was changed, or weights and optimizer fill half of the GPU, and says why.
        device: `cuda`: a GPU for each rank, and no run without; `cpu`: none, though there may be some; `auto`: a GPU
            where there is one, else the CPU, unless GPUs were granted (by Slurm, CUDA_VISIBLE_DEVICES) and none works.
        sync_batchnorm: Batch normalization over the micro-batches of all ranks together (GPUs only), for micro-batches
            that are small; each of its layers waits for all ranks. It depends on their number, so a run that goes on
            with another isn't the same. Default: each micro-batch by itself, whatever the number of ranks.
        timeout_minutes: How long a rank waits for the others before the run ends with a message: longer than any
            validation or checkpoint may keep one of them.
    """

    kind: Literal["ddp", "deepspeed", "auto"] = "auto"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    sync_batchnorm: bool = False
    timeout_minutes: float = 10.0

    def validate(self) -> None:
        """Raise UserError for a setting that is out of range."""
        if not 0 < self.timeout_minutes < float("inf"):
            raise UserError(f"engine.timeout_minutes: {self.timeout_minutes} is out of range; it is a positive number")


@dataclass
class ProfileConfig:
    """Traces by torch.profiler.

    Args:
        steps: `[first, last]`: optimizer steps, from 1, of which a trace is written into the run folder's `profile/`,
            for perfetto.dev, with a table of what took longest. Tracing takes time and changes no result. Default:
            none.
        ranks: Ranks that write one, such as [0]. Default: all.
    """

    steps: tuple[int, int] | None = None
    ranks: list[int] | None = None

    def validate(self) -> None:
        """Raise UserError for a setting that is out of range."""
        if self.steps is not None:
            in_range("profile.steps[0]", self.steps[0], 1)
            in_range("profile.steps[1]", self.steps[1], self.steps[0])
        elif self.ranks is not None:
            raise UserError(f"profile.ranks: {self.ranks} has no effect without profile.steps; set those too")
        for rank in self.ranks or ():
            in_range("profile.ranks", rank, 0)


@dataclass
class TrackingConfig:
    """MLflow.

    Args:
        enabled: Record the run in MLflow.
        uri: Tracking URI; the variable `MLFLOW_TRACKING_URI` wins over it. A name and a password in it move to
            `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD` of this process, and are written nowhere.
        experiment: Name of the experiment.
        register: Register the best model when the run ends.
        model_name: Name that it is registered under. Default: `fdtrain-<model>-q<quality>`.
        parent: Name or run id of the MLflow run that this one is a child of, such as a sweep's; one of that name is
            made if need be. Default: none.
        tags: What else to write on the MLflow run, such as `{team: a}`.
        system_metrics: Record use of processors, memory, disk, network and GPUs of each node.
        data_licence: Of the data, for the registered model's card. Default: FaceForensics++'s terms where the methods
            have its names, else "not recorded".
    """

    enabled: bool = True
    uri: str = DEFAULT_TRACKING_URI
    experiment: str = "fdtrain"
    register: bool = True
    model_name: str | None = None
    parent: str | None = None
    tags: dict[str, str] | None = None
    system_metrics: bool = True
    data_licence: str | None = None

    def __post_init__(self) -> None:
        # Here, since whatever is made of a configuration later may be written down.
        self.uri = move_credentials(self.uri)

    def validate(self) -> None:
        """Raise UserError for a setting that is out of range or without effect."""
        if (shown := shown_uri(self.uri)) != self.uri:
            raise UserError(f"tracking.uri: {shown} with a password would be written down; set MLFLOW_TRACKING_URI")
        if not self.enabled:
            without_effect("tracking.parent", self.parent, None, "set tracking.enabled to true")
            without_effect("tracking.tags", self.tags, None, "set tracking.enabled to true")
            without_effect("tracking.model_name", self.model_name, None, "set tracking.enabled to true")
        if self.model_name is not None and not re.fullmatch(r"[^/:\"'%\s]{1,200}", self.model_name):
            raise UserError(f"tracking.model_name: {self.model_name!r}: a name has no space, quote, '%', '/' or ':'")
        if self.parent is not None and not re.fullmatch(r"[\w.-]{1,200}", self.parent):
            raise UserError(f"tracking.parent: {self.parent!r}: a name has letters, digits, '.', '_' and '-' only")
        for key in self.tags or {}:
            if key == "mlflow.parentRunId" or key.startswith("fdtrain."):
                raise UserError(f"tracking.tags: {key} is written by fdtrain itself; choose another key")
