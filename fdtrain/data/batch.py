"""What a step consumes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import ShardReader


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device.

    Args:
        images: uint8 `[B, 3, H, W]`, channels_last, RGB.
        labels: int64 `[B]`, 1 = fake.
        rows: int64 `[B]`, row numbers of the index.
        positions: int64 `[B]` in main memory, the samples' places in the run: the key of their random draws.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    positions: Tensor


def to_batch(reader: ShardReader, batch: MicroBatch, images: Tensor, device: torch.device) -> Batch:
    """Put decoded images, uint8 `[B, H, W, 3]`, and what the index says of them on the device."""
    labels = torch.from_numpy(reader.labels(batch.rows))
    # A permuted view of HWC memory is what channels_last means: no copy.
    images = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    rows, positions = torch.from_numpy(batch.rows), torch.from_numpy(batch.positions)
    return Batch(images, labels.to(device, non_blocking=True), rows, positions)
