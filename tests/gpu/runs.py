"""Trainings by the program on all GPUs of the host, and what came of them. Without a GPU these run on a CPU."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.conftest import small_training, torchrun

MICRO_BATCH, ACCUMULATION = 2, 2


def host_ranks() -> int:
    """One for each GPU."""
    return max(1, torch.cuda.device_count())


def train(root: Path, run: Path, ranks: int, **settings: object) -> list[dict[str, Any]]:
    """Train under torchrun, two micro-batches of two on each rank; the lines of the log."""
    batch = {"train__micro_batch_size": MICRO_BATCH, "train__global_batch_size": MICRO_BATCH * ACCUMULATION * ranks}
    words = small_training(root, run, **{"train__epochs": 40, "train__log_every": 1} | batch | settings)
    done = torchrun(ranks, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def values(log: list[dict[str, Any]], name: str) -> list[float]:
    """A value of each step that has it."""
    return [line[name] for line in log if name in line]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Of the checkpoint after that step."""
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
