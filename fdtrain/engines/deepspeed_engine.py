"""DeepSpeed's engine: imported for this rank's device, wrapped around the task, and let go of at the end of the run."""

import os
import warnings
from typing import Any

import torch
import torch.distributed as dist

from fdtrain.config import UserError
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task


def initialize(task: Task, optimizer: torch.optim.Optimizer, settings: dict[str, Any], runtime: Runtime) -> Any:
    """Import DeepSpeed for this rank's device, and let it wrap the task. Returns its engine.

    Raises:
        UserError: DeepSpeed is told to take another device, or refuses a setting.
    """
    device = runtime.device.type
    os.environ.setdefault("DS_ACCELERATOR", device)  # else it looks for hardware by its own rules
    os.environ.setdefault("LOCAL_RANK", "0")  # it insists, also where no launcher was needed
    import deepspeed
    from deepspeed.comm.torch import TorchBackend
    from pydantic import ValidationError

    if deepspeed.accelerator.get_accelerator().device_name() != device:
        raise UserError(f"DS_ACCELERATOR: {os.environ['DS_ACCELERATOR']} where the run is on {device}; leave it unset")
    # Of what DeepSpeed could compile nothing is used, and finding out what that is runs compilers.
    deepspeed.ops.__compatible_ops__ = {}
    # It keeps the groups of a run, whose threads would outlive them and meet the interpreter's end (see runtime.py).
    groups = deepspeed.utils.groups
    runtime.before_leaving.append(lambda: groups._release_process_group_references(group=None))
    for function in (TorchBackend.barrier, TorchBackend.monitored_barrier):
        # The default group of the moment of import; None is the one of the moment of the call.
        function.__defaults__ = tuple(None if isinstance(v, dist.ProcessGroup) else v for v in function.__defaults__)
    deepspeed.utils.logger.setLevel("ERROR")
    # DeepSpeed's own calls, several in each step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    try:
        engine, *_ = deepspeed.initialize(model=task, optimizer=optimizer, config=settings)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise UserError(
            f"deepspeed.overrides: DeepSpeed refuses {key} {fault['input']!r}: {fault['msg']}; mend it there or in "
            "deepspeed.config"
        ) from error
    runtime.before_leaving.append(lambda: _release(engine))
    return engine


def _release(engine: Any) -> None:
    """Make DeepSpeed's engine let go of its process groups, which its hooks on the gradients would keep for good.

    With stage 3 (0.19) a stack and a cache that belong to no engine still keep one.
    """
    engine.destroy()
    engine.optimizer = None
    for parameter in engine.module.parameters():
        vars(parameter).clear()
