"""Batch normalization over the GPUs: two ranks do what one does with batches twice as large."""

from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import Measured
from tests.gpu.runs import train, values

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")

MICRO_BATCH, STEPS = 4, 6


def losses(root: Path, run: Path, ranks: int, micro_batch: int, sync: bool) -> list[float]:
    """Of fp32 steps without dropout."""
    settings: dict[str, object] = {
        "precision": "fp32",
        "model__drop_rate": 0.0,
        "engine__sync_batchnorm": str(sync).lower(),
        "train__micro_batch_size": micro_batch,
        "train__global_batch_size": 4 * MICRO_BATCH,
        "train__max_steps": STEPS,
    }
    return values(train(root, run, ranks, **settings), "train/loss")


def largest(first: list[float], second: list[float]) -> float:
    """Difference of two curves of losses."""
    assert len(first) == len(second) == STEPS
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def test_two_ranks_are_one_with_batches_twice_as_large(shard_root: Path, tmp_path: Path, measured: Measured) -> None:
    whole = losses(shard_root, tmp_path / "whole", 1, 2 * MICRO_BATCH, sync=False)
    apart = largest(whole, losses(shard_root, tmp_path / "apart", 2, MICRO_BATCH, sync=False))
    together = largest(whole, losses(shard_root, tmp_path / "together", 2, MICRO_BATCH, sync=True))
    measured(f"losses of 2 ranks against 1 with larger batches: {together:.1e} synchronized, {apart:.1e} otherwise")
    assert together < 1e-3
    assert together < apart / 10
