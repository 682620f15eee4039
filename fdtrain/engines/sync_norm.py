"""Batch normalization over the images of all ranks together (MegDet; Peng et al., CVPR 2018), which GPUs alone have."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fdtrain.config import Config, UserError
from fdtrain.tasks import Task


def check_sync_batchnorm(config: Config, device: torch.device) -> None:
    """Raise UserError where `engine.sync_batchnorm` is asked of a CPU."""
    if config.engine.sync_batchnorm and device.type != "cuda":
        raise UserError(
            "engine.sync_batchnorm: torch has it on GPUs only; set it to false on a CPU: each micro-batch is then "
            "normalized by itself"
        )


def synchronize_norms(model: nn.Module) -> None:
    """Let all batch normalization go over the micro-batches of all ranks, in place.

    Modules change their class alone, so parameters, their names and their optimizer stay. Torch's own converter makes
    other modules, and of timm's, which end in an activation, such as have none.

    Raises:
        UserError: a module has no such form.
    """
    forms = _forms()
    for name, module in model.named_modules():
        if type(module) in forms:
            module.__class__ = forms[type(module)]
            module.process_group = None  # all ranks
        elif isinstance(module, _BatchNorm) and type(module) not in forms.values():
            raise UserError(
                f"engine.sync_batchnorm: {name} of the model is a {type(module).__name__}, which has no form over "
                "several ranks; set it to false"
            )


def ordinary_norms(task: Task) -> Task:
    """Undo `synchronize_norms` in place. Returns the task itself."""
    synchronized: list[nn.Module] = [norm for norm in task.model.modules() if isinstance(norm, nn.SyncBatchNorm)]
    if synchronized:
        ordinary = {form: before for before, form in _forms().items()}
        for module in synchronized:
            module.__class__ = ordinary[type(module)]
            del module.process_group
    return task


def _forms() -> dict[type[nn.Module], type[nn.Module]]:
    from timm.layers import BatchNormAct2d, SyncBatchNormAct  # seconds, which a model without it needn't pay

    return {nn.BatchNorm2d: nn.SyncBatchNorm, BatchNormAct2d: SyncBatchNormAct}
