"""Sums of features under attention maps (section 3.3). All of it in float32 or better, under autocast too."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Attention maps `[B, M, h, w]` at another size: bilinear, corners on corners."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=(size[0], size[1]), mode="bilinear", align_corners=True)


def pool_shared(maps: Tensor, features: Tensor) -> Tensor:
    """Pool the same features under each map: float32 `[B, M, h, w]`, `[B, C, h, w]` -> float32 `[B, M, C]`."""
    with _no_autocast(features.device.type):
        return maps.flatten(2) @ _pixels(at_least_float32(features))


def pool_grouped(maps: Tensor, features: Tensor) -> Tensor:
    """Pool each map's own features under it: float32 `[B, M, h, w]`, `[B, M * C, h, w]` -> float32 `[B, M, C]`.

    Every map meets every group in one matrix product, of which only the diagonal is wanted: M times the arithmetic, but
    the features are read where they lie, in channels_last memory, and arithmetic is not what this costs.
    """
    count = maps.shape[1]
    groups = pool_shared(maps, features).unflatten(2, (count, -1))
    return torch.stack([groups[:, i, i] for i in range(count)], dim=1)


def pool_mean(weights: Tensor, features: Tensor) -> Tensor:
    """Mean of the features under one map: float32 `[B, 1, h, w]` >= 0, `[B, C, h, w]` -> float32 `[B, C]`.

    Where the map is 0 everywhere this is the plain mean.
    """
    weights = weights + 1e-8
    return pool_shared(weights / weights.sum(dim=(2, 3), keepdim=True), features).squeeze(1)


def standardize(features: Tensor) -> Tensor:
    """Each channel with mean 0 and standard deviation 1 over its pixels: `[B, C, h, w]` -> float32, same shape."""
    features = at_least_float32(features)
    deviation, mean = torch.std_mean(features, dim=(2, 3), keepdim=True)
    return (features - mean) / (deviation + 1e-8)


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """The meta device, where networks are counted, knows no autocast at all."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _pixels(features: Tensor) -> Tensor:
    """`[B, C, h, w]` -> `[B, h * w, C]`; a view if the memory is channels_last."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)
