"""Buffers of a task put back where a pass or a step shall leave no trace."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fdtrain.tasks import Task


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
