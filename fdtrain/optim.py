"""The optimizer and the learning rate of a step."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fdtrain.config import OptimConfig


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


def lr_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of step `step` (from 0) as a share of `config.lr` (cosine: Loshchilov and Hutter, 2017, eq. 5).

    The first step of a warm-up of W steps has 1/W of the peak rate, the W-th the whole of it. A warm-up longer than the
    run never reaches the peak.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    floor = config.min_lr / config.lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
