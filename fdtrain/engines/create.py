"""Which engine runs the steps, and why."""

from typing import Literal

import torch
from torch import nn

from fdtrain.config import Config
from fdtrain.engines.base import Engine
from fdtrain.engines.ddp import DDPEngine
from fdtrain.engines.sync_norm import check_sync_batchnorm, synchronize_norms
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task

BYTES_PER_PARAMETER = 16
"""fp32: the weight, its gradient and Adam's two moments."""

SHARE_OF_DEVICE = 0.5
"""Of a GPU's memory that these may take; the rest is for activations."""

EngineKind = Literal["ddp", "deepspeed"]


def choose_engine(config: Config, model: nn.Module, runtime: Runtime) -> tuple[EngineKind, str]:
    """Resolve `engine.kind`, with the reason.

    The choice follows from the model, the device and the settings, not from the number of ranks.
    """
    if config.engine.kind != "auto":
        return config.engine.kind, "as configured"
    if config.deepspeed.is_changed:
        return "deepspeed", "a setting of deepspeed.* was changed"
    needed = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    size = f"weights, gradients and moments take {needed / 1e9:.2g} GB"
    if runtime.device.type != "cuda":
        return "ddp", f"{size}, and on a CPU there is little to gain by sharing them out"
    memory = torch.cuda.get_device_properties(runtime.device).total_memory
    if needed > SHARE_OF_DEVICE * memory:
        return "deepspeed", f"{size} of the GPU's {memory / 1e9:.0f} GB"
    return "ddp", f"{size} of the GPU's {memory / 1e9:.0f} GB, so there is no need to share them out"


def create_engine(
    config: Config,
    task: Task,
    runtime: Runtime,
    total_steps: int,
    warm_up_batch: tuple[int, int],
    accumulation: int,
) -> Engine:
    """Make the engine that `choose_engine` chooses.

    Args:
        config: The resolved configuration.
        task: The task. Rank 0's weights are taken by all ranks.
        runtime: This rank's surroundings.
        total_steps: Optimizer steps of the whole run, for the schedule.
        warm_up_batch: `(micro-batch size, side of the decoded images)`, for DDP's throw-away pass.
        accumulation: Micro-batches of one rank in one step.

    Raises:
        UserError: a setting doesn't suit the engine.
    """
    kind, _ = choose_engine(config, task.model, runtime)
    if config.engine.sync_batchnorm:
        check_sync_batchnorm(config, runtime.device)
        synchronize_norms(task.model)
    if kind == "deepspeed":
        config.check_engine(kind)  # auto may have come to it only here
        from fdtrain.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(task, config, runtime, total_steps, accumulation)
    return DDPEngine(task, config.optim, runtime, total_steps, warm_up_batch)
