"""Every setting of a training run: its type, its default and its meaning, once.

The command line, `--help`, the YAML files in configs/ and the resolved `config.yaml` of a run folder all come from
these dataclasses (the docstrings are the help texts).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets_shards.schema import Quality, quality_name
from datasets_shards.yaml12 import dump_yaml
from fdtrain.config.checks import HostError, TransientError, UserError, first_line, in_range
from fdtrain.config.data import AugmentConfig, DataConfig, LoaderConfig
from fdtrain.config.deepspeed import DeepSpeedConfig
from fdtrain.config.model import LossConfig, ModelConfig, MultiAttentionConfig
from fdtrain.config.run import (
    DEFAULT_TRACKING_URI,
    CheckpointConfig,
    EngineConfig,
    OptimConfig,
    ProfileConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "DEFAULT_TRACKING_URI",
    "NO_OTHER_MODEL",
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DeepSpeedConfig",
    "EngineConfig",
    "HostError",
    "LoaderConfig",
    "LossConfig",
    "ModelConfig",
    "MultiAttentionConfig",
    "OptimConfig",
    "ProfileConfig",
    "RunConfig",
    "TrackingConfig",
    "TrainConfig",
    "TransientError",
    "UserError",
    "first_line",
    "flatten",
    "flatten_settings",
]


@dataclass
class Config:
    """Every setting of a training run.

    Args:
        run: Where a run keeps its files.
        data: Which samples.
        model: Which detector.
        multi_attention: What is special about `multi_attention`; settings that no other model has.
        loss: What a wrong answer costs.
        loader: How images get from the tars to the device.
        augment: What is done to training images.
        optim: Optimizer and learning-rate schedule.
        train: How long, and in what batches.
        checkpoint: What survives a crash.
        engine: What runs an optimizer step.
        deepspeed: What is special about `engine.kind: deepspeed`.
        profile: Traces by torch.profiler.
        tracking: MLflow.
        precision: `fp32`, `tf32` (GPU), `bf16`, `fp16`, or `auto`: bf16 on a GPU that has it, fp16 on another, fp32 on
            a CPU.
        seed: Seed of the sample order, the initial weights and every random draw.
        deterministic: Only deterministic GPU kernels, so that a resumed run repeats bit for bit (a CPU always does).
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    multi_attention: MultiAttentionConfig = field(default_factory=MultiAttentionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    seed: int = 0
    deterministic: bool = False

    @property
    def run_dir(self) -> Path:
        """The run folder, `runs/<model>-q<quality>` unless set."""
        model = self.model.name.replace("/", "-")
        return Path(self.run.dir or f"runs/{model}-{quality_name(self.data.quality)}")

    @property
    def quality(self) -> Quality:
        """MozJPEG quality, or "raw"."""
        return self.data.quality

    @property
    def model_options(self) -> dict[str, Any]:
        """Options for `create_model`; None stands for the model's default."""
        options = {
            "pretrained": self.model.pretrained,
            "drop_rate": self.model.drop_rate,
            "drop_path_rate": self.model.drop_path_rate,
            "outputs": self.model.outputs,
            "variant": self.model.variant,
        }
        return options | (self.multi_attention.model_options if self.model.name == "multi_attention" else {})

    def validate(self) -> None:
        """Check what a type can't say. Raises UserError for the first setting that is out of range."""
        sections = (self.data, self.model, self.loss, self.loader, self.optim, self.train, self.checkpoint, self.engine)
        for section in (*sections, self.profile, self.tracking):
            section.validate()
        self.multi_attention.validate(self.model.name)
        self.check_engine(self.engine.kind)
        in_range("seed", self.seed, 0, 2**63 - 1)

    def check_engine(self, kind: Literal["ddp", "deepspeed", "auto"]) -> None:
        """Raise UserError for a setting that an engine can't do, or that has no effect on it."""
        stages = ("backbone_epochs", "head_epochs")
        self.deepspeed.validate(
            kind,
            ema_decay=self.optim.ema_decay,
            stage_epochs={f"multi_attention.{name}": getattr(self.multi_attention, name) for name in stages},
            compiled=self.train.compile,
        )

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
        return asdict(self, dict_factory=_plain)

    def to_yaml(self) -> str:
        """As the YAML that `--config` reads."""
        return dump_yaml(self.to_dict())


NO_OTHER_MODEL = (
    "run.",
    "loader.threads",
    "loader.prefetch",
    "data.cache_",
    "data.root",  # its digest is what counts
    "checkpoint.",
    "profile.",
    "tracking.",
    "train.log_every",
    "train.max_minutes",
    "engine.timeout_minutes",
    "engine.device",
)
"""Settings by their beginnings that make no other model."""


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"data": {"root": x}}` -> `{"data.root": x}`: keys as they are spelled on the command line."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file, however they are nested, by flat keys; `data.mix` and its like keep their mappings."""
    whole = flatten(Config().to_dict()).keys()
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        is_section = isinstance(value, dict) and str(key) not in whole
        flat |= flatten({str(key): value}) if is_section else {str(key): value}
    return flat


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}
