"""What engines do with values that each rank has its own of: the averages of batch normalization."""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fdtrain.tasks import Task


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a float tensor over all ranks; where all have the same value, exactly that. Collective."""
    total = value.detach().to(torch.float64, copy=True)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).to(value.dtype)


def average_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state, or the moving averages of it, with its float buffers averaged over the ranks. Collective."""
    parameters = {name for name, _ in model.named_parameters()}
    return {
        name: mean_over_ranks(value) if name not in parameters and value.is_floating_point() else value
        for name, value in values.items()
    }


def align_frozen_norms(task: Task) -> None:
    """Give all ranks the same batch-norm averages where these enter the forward pass. Collective."""
    for norm in task.frozen_norms():
        for average in (norm.running_mean, norm.running_var):
            if average is not None:
                average.copy_(mean_over_ranks(average))


def copy_buffers(task: Task) -> list[tuple[Tensor, Tensor]]:
    """All buffers of a task, each with a copy of what it holds now, for `put_back`."""
    buffers = [(buffer, torch.empty_like(buffer)) for buffer in task.buffers()]
    copy_all((copy, buffer) for buffer, copy in buffers)
    return buffers


def put_back(buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Undo what a pass that shall leave no trace did to buffers."""
    copy_all(buffers)


@torch.no_grad()
def copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy the second of each pair into the first, which is like it. A few launches on a GPU, instead of hundreds."""
    by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for pair in pairs:
        by_dtype.setdefault(pair[0].dtype, []).append(pair)
    for alike in by_dtype.values():
        into, values = zip(*alike, strict=True)
        torch._foreach_copy_(into, values)


def own_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of this rank's own buffers among a model's state, or among the moving averages of it."""
    return {name: values[name].clone() for name, _ in model.named_buffers() if name in values}
