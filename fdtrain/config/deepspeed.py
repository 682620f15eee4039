"""Settings of the DeepSpeed engine."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from fdtrain.config.checks import UserError, without_effect


@dataclass
class DeepSpeedConfig:
    """What is special about `engine.kind: deepspeed`.

    Args:
        zero_stage: What each rank holds but a share of (ZeRO; Rajbhandari et al. 2020): 0: nothing; 1: the optimizer's
            state; 2: gradients too; 3: weights too.
        config: A JSON file of DeepSpeed's own settings, for what has no setting here, such as the sizes of its buckets.
        overrides: The same, written here, such as `{zero_optimization: {reduce_bucket_size: 1000000}}`; it wins over
            the file. What is a setting of this program's may be in neither, but with the same value.
    """

    zero_stage: Literal[0, 1, 2, 3] = 1
    config: str | None = None
    overrides: dict[str, Any] | None = None

    @property
    def is_changed(self) -> bool:
        """Whether a setting isn't at its default."""
        return any(getattr(self, setting.name) != setting.default for setting in fields(self))

    def validate(self, kind: str, *, ema_decay: float | None, stage_epochs: dict[str, int], compiled: str) -> None:
        """Raise UserError for what has no effect, and for what DeepSpeed can't do.

        Args:
            kind: The setting `engine.kind`.
            ema_decay: The setting `optim.ema_decay`.
            stage_epochs: Settings that change what is trained in the middle of a run, and their values.
            compiled: The setting `train.compile`.
        """
        if kind == "ddp":
            for setting in fields(self):
                key = f"deepspeed.{setting.name}"
                without_effect(key, getattr(self, setting.name), setting.default, "set engine.kind to deepspeed")
        if kind == "ddp" or (kind == "auto" and not self.is_changed):
            return
        if self.zero_stage:
            for key, epochs in stage_epochs.items():
                if epochs:
                    raise UserError(
                        f"{key}: {epochs} changes what is trained in the middle of the run, which engine.kind "
                        f"deepspeed can't with deepspeed.zero_stage {self.zero_stage}; take engine.kind ddp or "
                        "deepspeed.zero_stage 0, or set it to 0"
                    )
        if self.zero_stage == 3 and ema_decay is not None:
            raise UserError(
                f"optim.ema_decay: {ema_decay} needs the whole of the weights after every step, and "
                "deepspeed.zero_stage 3 leaves each rank a share; set it to null, or take deepspeed.zero_stage 2"
            )
        if self.zero_stage == 3 and compiled != "off":
            raise UserError(
                f"train.compile: {compiled} doesn't go with deepspeed.zero_stage 3, which moves weights in and out of "
                "each module; set it to off, or take deepspeed.zero_stage 2"
            )
