"""A task wraps a model and says what a training step and an evaluation step are.

An engine wraps the task and calls it; the training loop knows neither models nor engines by name.
"""

import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fdtrain.config import UserError
from fdtrain.data.batch import Batch
from fdtrain.models import InputSpec
from fdtrain.tasks.precision import fake_probability, keep_head_in_float32


class Task(nn.Module):
    """What every task has; a kind of task adds `training_step`.

    Args:
        model: Normalized float `[B, 3, S, S]` -> logits `[B, 2]`.
        spec: The model's input; images of another size are resized to it on the device.
        freeze: Patterns, as a shell's, of the names of parameters that stay as they are.

    Raises:
        UserError: a pattern fits no parameter, or all of them are frozen.
    """

    mean: Tensor
    std: Tensor
    is_selectable = True
    """Whether the model, as it stands in this epoch, can be chosen as the best one."""

    def __init__(self, model: nn.Module, spec: InputSpec, freeze: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        keep_head_in_float32(model)
        self.spec = spec
        self._frozen = _matching(model, freeze)
        # On the scale 0..255 of the decoded pixels. Not state: model.json holds them.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1) * 255, persistent=False)
        self.start_epoch(0)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`training_step`, under the name by which engines call it.

        Raises:
            UserError: the micro-batch is too small for batch normalization.
        """
        try:
            return self.training_step(images, labels)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"train.micro_batch_size: {len(labels)} image of {self.spec.size} px leaves batch normalization a "
                "single value; raise it, or data.image_size"
            ) from None

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One micro-batch: uint8 `[B, 3, H, W]` and int64 `[B]` -> "loss" and other scalars to log."""
        raise NotImplementedError

    def scores(self, batch: Batch) -> Tensor:
        """P(fake), float64 `[B]`, of one batch in evaluation mode."""
        return fake_probability(self.logits(self.prepare(batch.images)))

    def logits(self, images: Tensor) -> Tensor:
        """What is scored: normalized float `[B, 3, S, S]` -> logits `[B, 2]`."""
        return self.model(images)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 `[B, 3, H, W]` -> normalized float32 `[B, 3, S, S]`, channels_last, on the same device."""
        pixels = images.float()
        if images.shape[-2:] != (self.spec.size, self.spec.size):
            pixels = functional.interpolate(
                pixels, size=(self.spec.size, self.spec.size), mode=self.spec.interpolation, antialias=True
            ).clamp(0, 255)
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def start_epoch(self, epoch: int) -> None:
        """Set what depends on the epoch (from 0), whichever was set before: what is trained, rates of losses.

        Called before the first step of an epoch, and of a resumed run.
        """
        self.train_only(self.model)

    def end_step(self) -> None:
        """After an optimizer step, on all ranks together: what a task keeps of the samples that it has seen.

        A step that isn't applied doesn't end: all buffers of the task are put back then.
        """

    def train_only(self, *modules: nn.Module) -> None:
        """Let the parameters of these parts of the model be trained, but for those frozen by name."""
        chosen = {id(parameter) for module in modules for parameter in module.parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(id(parameter) in chosen and name not in self._frozen)

    def compile_part(self, part: Literal["on", "backbone"]) -> None:
        """Let `torch.compile` make kernels of the whole model, or of the stages of its EfficientNet one by one.

        In place: names of weights stay, and a copy of the task (the evaluated one) runs as it is written.

        Raises:
            UserError: there is no such part, or no C++ compiler.
        """
        require_compiler()
        if part == "on":
            self.model.compile()
            return
        stages = getattr(getattr(self.model, "backbone", self.model), "blocks", None)
        if stages is None:
            raise UserError("train.compile: backbone: the model has no EfficientNet; take on or off")
        # The stages are instances of one class, so their kernels, one for each stage and each way of training it, count
        # as versions of one function, of which Dynamo makes 8 and then no more.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for stage in stages:
            stage.compile()

    def train(self, mode: bool = True) -> Self:
        """As of any module; but batch normalization that isn't trained keeps its averages, and normalizes by them."""
        super().train(mode)
        for module in self.frozen_norms():
            module.eval()
        return self

    def frozen_norms(self) -> list[_BatchNorm]:
        """Batch normalization of which no parameter is trained."""
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm) and module.affine]
        return [norm for norm in norms if not (norm.weight.requires_grad or norm.bias.requires_grad)]


def require_compiler() -> None:
    """Raise UserError where `torch.compile` would find no compiler."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise UserError("train.compile: torch.compile needs a C++ compiler; install g++, or set it to off")


def _matching(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    frozen = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            parts = sorted({name.split(".")[0] for name in names})
            raise UserError(
                f"model.freeze: {pattern!r} fits no parameter; their names begin with {', '.join(parts)} (such as "
                f"{names[0]}), and patterns are written like '{parts[0]}.*'"
            )
        frozen |= found
    if names and len(frozen) == len(names):
        raise UserError(f"model.freeze: {', '.join(patterns)} freezes all {len(names)} parameters; leave some to train")
    return frozen
