"""Every setting of a training run: its type, its default and its meaning, once.

The command line, `--help`, the YAML files in configs/ and the resolved `config.yaml` of a run folder all come from
these dataclasses (the docstrings are the help texts).
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from datasets_shards.schema import Quality, parse_quality, quality_name

DEFAULT_TRACKING_URI = "sqlite:///runs/mlflow.db"


class UserError(ValueError):
    """Something that the user can mend: the message is one line with the key or file, the fault and the remedy."""


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
class DataConfig:
    """Which samples.

    Args:
        root: Folder that `python -m datasets_shards pack --out` wrote, or its URL, such as `s3://bucket/root`.
        cache_dir: Folder on a local disk for the tars of a root by URL; shared by all processes of a node.
        cache_bytes: What the tars in it may add up to; those used last stay.
        quality: MozJPEG quality of the shard set, 1 to 100, or `raw`.
        image_size: Side of the images that the model sees, pixels. Default: the crop size of the shard set.
        on_bad_sample: `error` stops at a training image that can't be read or decoded; `skip` warns, counts, and takes
            the plan's substitute, which is the same in every run. Evaluation always stops.
        max_bad_share: Share of the training samples that `skip` puts up with; above it the run stops.
        mix: Qualities that are mixed in training, with the weight of each, such as `{77: 1, 15: 2}`; validation and
            test stay at `quality`. Default: training at `quality` as well.
        methods: Methods of the training and validation splits, such as `[youtube, Deepfakes]`; the test split keeps
            all. Default: all.
        frames_per_video: At most so many frames of each training video, evenly spaced. Default: all that are packed.
        videos_fraction: Share of the training split's identities, with all their videos, for learning curves; a smaller
            share is part of a larger one.
        balance: `none`: each training sample once in an epoch; `class`: real and fake equally often; `method`: each
            method equally often.
        shuffle: `full`: any sample may follow any other; `blocks`: neighbours stay near each other, so that reading
            from a network file system is mostly sequential.
        block_samples: Samples of a block, with `shuffle` `blocks`; eight blocks are read at a time.
    """

    root: str = ""
    cache_dir: str | None = None
    cache_bytes: int = 100_000_000_000
    quality: int | Literal["raw"] = 77
    image_size: int | None = None
    on_bad_sample: Literal["error", "skip"] = "error"
    max_bad_share: float = 0.01
    mix: dict[str, float] | None = None
    methods: list[str] | None = None
    frames_per_video: int | None = None
    videos_fraction: float = 1.0
    balance: Literal["none", "class", "method"] = "none"
    shuffle: Literal["full", "blocks"] = "full"
    block_samples: int = 1024


@dataclass
class ModelConfig:
    """Which detector.

    Args:
        name: `meso4` or `efficientnet_b0` .. `efficientnet_b8`.
        pretrained: Start from timm's ImageNet (AdvProp) weights, downloaded by timm at the first use.
        drop_rate: Dropout before the classifier. Default: the model's own.
        drop_path_rate: Stochastic depth. Default: the model's own.
    """

    name: str = "efficientnet_b4"
    pretrained: bool = False
    drop_rate: float | None = None
    drop_path_rate: float | None = None


@dataclass
class LoaderConfig:
    """How images get from the tars to the device.

    Args:
        kind: `dali`, `torch` (libjpeg-turbo in a thread pool), or `auto`: DALI on a GPU, torch on a CPU.
        threads: Decoding threads of each rank. Default: the rank's share of the cores.
        prefetch: Micro-batches that are read and decoded ahead.
    """

    kind: Literal["dali", "torch", "auto"] = "auto"
    threads: int | None = None
    prefetch: int = 3


@dataclass
class AugmentConfig:
    """What is done to training images, on the device and by draws that depend on the sample's place in the run alone.

    Args:
        preset: `none`; `flip`; `deepfakebench`: flip, rotation, blur, colour and JPEG as that benchmark's detectors are
            trained with; `compression`: JPEG with MozJPEG's tables at a random quality.
        jpeg_quality: Lowest and highest quality of the preset's JPEG, such as `[10, 95]`. Default: the preset's own.
    """

    preset: Literal["none", "flip", "deepfakebench", "compression"] = "none"
    jpeg_quality: tuple[int, int] | None = None


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
        warmup_steps: Optimizer steps of linear warm-up.
        min_lr: Learning rate at the end of the cosine.
        clip_grad_norm: Largest L2 norm of the gradient; 0 clips nothing.
    """

    name: Literal["adamw", "adam"] = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 100
    min_lr: float = 0.0
    clip_grad_norm: float = 1.0


@dataclass
class TrainConfig:
    """How long, and in what batches.

    Args:
        epochs: Passes over the training split.
        max_steps: Optimizer steps after which the run ends, if that comes before the epochs do.
        global_batch_size: Samples of one optimizer step, over all ranks.
        micro_batch_size: Samples of one forward pass on one rank. Global batch size = micro-batch size x world size x
            accumulation; the accumulation follows.
        log_every: Optimizer steps between two lines of the log.
    """

    epochs: int = 10
    max_steps: int | None = None
    global_batch_size: int = 64
    micro_batch_size: int = 16
    log_every: int = 10


@dataclass
class CheckpointConfig:
    """What survives a crash.

    Args:
        every_steps: Optimizer steps between two checkpoints; the end of an epoch writes one as well.
        keep: The newest checkpoints that are kept.
    """

    every_steps: int = 500
    keep: int = 3


@dataclass
class EngineConfig:
    """What runs an optimizer step.

    Args:
        kind: `ddp`, or `auto`, which is DDP in this release.
    """

    kind: Literal["ddp", "auto"] = "auto"


@dataclass
class TrackingConfig:
    """MLflow.

    Args:
        enabled: Record the run in MLflow.
        uri: Tracking URI; the variable `MLFLOW_TRACKING_URI` wins over it.
        experiment: Name of the experiment.
        register: Register the best model as `fdtrain-<model>-q<quality>` when the run ends.
    """

    enabled: bool = True
    uri: str = DEFAULT_TRACKING_URI
    experiment: str = "fdtrain"
    register: bool = True


@dataclass
class Config:
    """Every setting of a training run.

    Args:
        run: Where a run keeps its files.
        data: Which samples.
        model: Which detector.
        loader: How images get from the tars to the device.
        augment: What is done to training images.
        optim: Optimizer and learning-rate schedule.
        train: How long, and in what batches.
        checkpoint: What survives a crash.
        engine: What runs an optimizer step.
        tracking: MLflow.
        precision: `fp32`, `tf32` (GPU), `bf16`, `fp16`, or `auto`: bf16 on a GPU that has it, fp16 on another, fp32 on
            a CPU.
        seed: Seed of the sample order, the initial weights and every random draw.
        deterministic: Only deterministic GPU kernels, so that a resumed run repeats bit for bit (a CPU always does).
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    seed: int = 0
    deterministic: bool = False

    @property
    def run_dir(self) -> Path:
        """The run folder, `runs/<model>-q<quality>` unless set."""
        return Path(self.run.dir or f"runs/{self.model.name}-{quality_name(self.data.quality)}")

    @property
    def quality(self) -> Quality:
        """MozJPEG quality, or "raw"."""
        return self.data.quality

    def validate(self) -> None:
        """Check what a type can't say. Raises UserError for the first setting that is out of range."""
        if not self.data.root:
            raise UserError("data.root: not set; give the folder that 'python -m datasets_shards pack --out' wrote")
        if not isinstance(self.data.quality, str):
            _in_range("data.quality", self.data.quality, 1, 100)
        if self.data.image_size is not None:
            _in_range("data.image_size", self.data.image_size, 32)
        _in_range("data.max_bad_share", self.data.max_bad_share, 0, 1)
        for key, value in {
            "model.drop_rate": self.model.drop_rate,
            "model.drop_path_rate": self.model.drop_path_rate,
            "optim.betas[0]": self.optim.betas[0],
            "optim.betas[1]": self.optim.betas[1],
        }.items():
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{key}: {value} is out of range; allowed are 0 up to, not including, 1")
        for key, value in {
            "data.frames_per_video": self.data.frames_per_video,
            "data.block_samples": self.data.block_samples,
            "data.cache_bytes": self.data.cache_bytes,
            "loader.threads": self.loader.threads,
            "loader.prefetch": self.loader.prefetch,
            "train.epochs": self.train.epochs,
            "train.max_steps": self.train.max_steps,
            "train.global_batch_size": self.train.global_batch_size,
            "train.micro_batch_size": self.train.micro_batch_size,
            "train.log_every": self.train.log_every,
            "checkpoint.every_steps": self.checkpoint.every_steps,
            "checkpoint.keep": self.checkpoint.keep,
        }.items():
            if value is not None:
                _in_range(key, value, 1)
        for key, value in {
            "optim.weight_decay": self.optim.weight_decay,
            "optim.warmup_steps": self.optim.warmup_steps,
            "optim.clip_grad_norm": self.optim.clip_grad_norm,
            "optim.eps": self.optim.eps,
        }.items():
            _in_range(key, value, 0)
        _in_range("seed", self.seed, 0, 2**63 - 1)
        if not 0 < self.optim.lr < float("inf"):
            raise UserError(f"optim.lr: {self.optim.lr} is out of range; it is a positive number")
        if not 0 <= self.optim.min_lr <= self.optim.lr:
            raise UserError(f"optim.min_lr: {self.optim.min_lr} is out of range; allowed are 0 to optim.lr")

    @property
    def training_qualities(self) -> dict[Quality, float]:
        """What training reads, with the weight of each quality.

        Raises:
            UserError: `data.mix` names something else than qualities, or none.
        """
        if self.data.mix is None:
            return {self.quality: 1.0}
        try:
            mix = {parse_quality(name): weight for name, weight in self.data.mix.items()}
        except ValueError as error:
            raise UserError(f"data.mix: {error}") from None
        if not mix:
            raise UserError("data.mix: names no quality; give at least one, or leave the key away")
        return mix

    def accumulation(self, world_size: int) -> int:
        """Micro-batches of one rank in one optimizer step.

        Raises:
            UserError: the global batch doesn't divide into equal shares; the message names the nearest sizes that do.
        """
        share = self.train.micro_batch_size * world_size
        if self.train.global_batch_size % share:
            below = self.train.global_batch_size // share * share
            nearest = [str(size) for size in (below, below + share) if size]
            raise UserError(
                f"train.global_batch_size: {self.train.global_batch_size} is not a multiple of train.micro_batch_size "
                f"{self.train.micro_batch_size} x {world_size} ranks; the nearest that are: {' and '.join(nearest)}"
            )
        return self.train.global_batch_size // share

    def to_dict(self) -> dict[str, Any]:
        """As nested plain values (a tuple becomes a list), the form of config.yaml."""
        content = asdict(self)
        content["optim"]["betas"] = list(self.optim.betas)
        if self.augment.jpeg_quality is not None:
            content["augment"]["jpeg_quality"] = list(self.augment.jpeg_quality)
        return content

    def to_yaml(self) -> str:
        """As the YAML that `--config` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"data": {"root": x}}` -> `{"data.root": x}`: keys as they are spelled on the command line."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _in_range(key: str, value: float, low: float, high: float = float("inf")) -> None:
    if not low <= value <= high:
        allowed = f"at least {low}" if high == float("inf") else f"{low} to {high}"
        raise UserError(f"{key}: {value} is out of range; allowed is {allowed}")
