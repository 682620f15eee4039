"""A copy of a state in main memory, taken between two steps, that stays as it is while training goes on."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Place = tuple[Any, ...]
"""Keys and indices that lead to a tensor."""


class Snapshot:
    """Copies nested dicts, lists and tuples with tensors, each time into the same buffers.

    Buffers keep shape, dtype and strides of their tensors, and are pinned where these are on a GPU, so that the copy is
    one transfer that nothing waits for. A tensor in two places has a buffer for each.
    """

    def __init__(self) -> None:
        self._buffers: dict[Place, Tensor] = {}
        self._used: dict[Place, Tensor] = {}
        self._is_queued = False

    def take(self, tree: Any) -> Any:
        """A copy of `tree`, valid until the next call. Waits for the GPU once, at the end."""
        self._used, self._is_queued = {}, False
        result = self._copy(tree, ())
        self._buffers = self._used  # those of tensors that are no more are let go
        if self._is_queued:
            done = torch.cuda.Event()  # behind all copies, on the stream that training's kernels are on
            done.record()
            done.synchronize()
        return result

    @property
    def nbytes(self) -> int:
        """Of all buffers together."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def _copy(self, value: Any, place: Place) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), place)
        if isinstance(value, dict):
            # A key stays the same object: pickle writes one that is there twice as a reference.
            return {key: self._copy(item, (*place, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self._copy(item, (*place, index)) for index, item in enumerate(value)])
        return copy.deepcopy(value)

    def _copy_tensor(self, value: Tensor, place: Place) -> Tensor:
        buffer = self._buffers.get(place)
        if (
            buffer is None
            or buffer.shape != value.shape
            or buffer.dtype != value.dtype
            or buffer.stride() != value.stride()
        ):
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        self._used[place] = buffer
        self._is_queued |= value.is_cuda
        return buffer.copy_(value, non_blocking=True)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating-point value, of tensors on one device, is infinite or NaN. Waits for the device once."""
    flags = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not flags or bool(torch.stack(flags).all())
