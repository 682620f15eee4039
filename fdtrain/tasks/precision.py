"""Which precision the answers of a model have: its head and its logits float32, its scores float64, in any training."""

from typing import Any

import torch
from torch import Tensor, nn


def keep_head_in_float32(model: nn.Module) -> None:
    """Let the linear layers behind the pooled features compute in float32 under autocast too, in place.

    A bfloat16 logit near 6 has a step of .03, so that images tie which the features tell apart. Modules change their
    class alone, so parameters and their names stay.

    Args:
        model: timm's networks name their last layer; in the others every linear layer is behind the pooling.
    """
    classifier: Any = getattr(model, "get_classifier", None)
    for module in (classifier() if classifier else model).modules():
        if type(module) is nn.Linear:
            module.__class__ = Float32Linear


class Float32Linear(nn.Linear):
    """A linear layer that autocast leaves as it is."""

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in]` of any float type -> `[..., out]`, float32 under autocast."""
        device = input.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(input)
        with torch.autocast(device, enabled=False):
            return super().forward(input.float())


def fake_probability(logits: Tensor) -> Tensor:
    """P(fake), float64 `[B]`, from float32 logits `[B, 2]`: the sigmoid of their difference, as `registry/serving.py`.

    In float32 it is exactly 1 from a difference of 17 on, in float64 from 37 on.
    """
    real, fake = logits.double().unbind(1)
    return torch.sigmoid(fake - real)
