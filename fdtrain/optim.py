"""The optimizer and the learning rate of a step."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fdtrain.config import OptimConfig

WARMUP_SHARE = 0.05
"""Of the run's steps, where `optim.warmup_steps` isn't given."""


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW with weight decay on weight matrices alone.

    It has all parameters, since what is trained may change with the epoch; those without a gradient stay as they are.
    """
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1]},
    ]
    return kinds[config.name](groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True)


def create_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig, total_steps: int) -> LambdaLR:
    """Linear warm-up, then a cosine to `min_lr` or a constant rate: a pure function of the step, so resume is exact."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, total_steps, config))


def warmup_steps(total_steps: int, config: OptimConfig) -> int:
    """Steps of the warm-up of a run: as configured, or a share of it."""
    return max(1, round(WARMUP_SHARE * total_steps)) if config.warmup_steps is None else config.warmup_steps


def warmup_warning(total_steps: int, config: OptimConfig) -> str | None:
    """What to say of a warm-up that takes more than half of the run; None where it doesn't."""
    steps = warmup_steps(total_steps, config)
    if steps < 2 or steps <= total_steps / 2:
        return None
    end = f"only the last {total_steps - steps} have" if steps < total_steps else "no step has"
    return (
        f"optim.warmup_steps: {steps} of the run's {total_steps} steps are warm-up, so {end} the whole optim.lr; "
        f"lower it, leave it away ({round(100 * WARMUP_SHARE)} % of the run), or train longer"
    )


def lr_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of step `step` (from 0) as a share of `config.lr` (cosine: Loshchilov and Hutter, 2017, eq. 5).

    The first step of a warm-up of W steps has 1/W of the peak rate, the W-th the whole of it. A warm-up longer than the
    run never reaches the peak.
    """
    warmup = warmup_steps(total_steps, config)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    floor = config.min_lr / config.lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
