"""EfficientNet-B4 at 380 px as a user would train it: images/s, memory, share of time spent waiting for data.

Writes `throughput.json` into the folder that the variable FDTRAIN_GPU_REPORT names, else into the test's own.
"""

import json
import os
import threading
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from tests.gpu.conftest import Measured
from tests.gpu.runs import host_ranks, train, values
from tests.shards import write_root

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

MODEL, SIDE, MICRO_BATCH, STEPS, EVERY = "efficientnet_b4", 380, 32, 40, 10
VIDEOS_OF_A_PAIR = 6
SHOWN = ("train/memory", "train/mfu", "train/time")


class UsedMemory(threading.Thread):
    """The most that is used of the first GPU, by whatever process, in bytes: asked for ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._done = 0, threading.Event()
        self.before = self._now()  # what this process takes itself, and others

    def run(self) -> None:
        while not self._done.wait(0.1):
            self.most = max(self.most, self._now() - self.before)

    def stop(self) -> int:
        """End it; bytes."""
        self._done.set()
        self.join()
        return self.most

    def _now(self) -> int:
        if not torch.cuda.is_available():
            return 0
        free, total = torch.cuda.mem_get_info(0)
        return total - free


def test_images_per_second_of_a_real_run(tmp_path: Path, measured: Measured) -> None:
    report = Path(os.environ.get("FDTRAIN_GPU_REPORT", tmp_path)) / "throughput.json"
    found = throughput(tmp_path, host_ranks())
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(found, indent=2) + "\n")
    measured(f"{json.dumps(found)}; written to {report}")
    assert found["images_per_s"] > 0
    assert 0 <= found["data_wait"] < 1
    assert found["memory_bytes"] > 0


def throughput(folder: Path, ranks: int, **smaller: Any) -> dict[str, Any]:
    """Train by the program and gather what its log says of the steps after the first ones."""
    settings = {"model": MODEL, "side": SIDE, "micro_batch": MICRO_BATCH, "steps": STEPS, "every": EVERY} | smaller
    micro_batch, side = settings["micro_batch"], settings["side"]
    # All steps are of one epoch: the checkpoint at its end, written while training goes on, would take its share.
    frames = -(-settings["steps"] * micro_batch * ranks // (8 * VIDEOS_OF_A_PAIR))
    root = write_root(folder / "root", (77,), (8, 2, 2), frames=frames, size=side)
    memory = UsedMemory()
    memory.start()
    try:
        log = train(
            root,
            folder / "run",
            ranks,
            model__name=settings["model"],
            train__micro_batch_size=micro_batch,
            train__global_batch_size=micro_batch * ranks,
            train__max_steps=settings["steps"],
            train__log_every=settings["every"],
            augment__preset="flip",
        )
    finally:
        used = memory.stop()
    timed = log[1:] if len(log) > 1 else log  # the first lines have what is chosen and made once
    return settings | {
        "ranks": ranks,
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "images_per_s": median(values(timed, "train/images_per_s")),
        "data_wait": median(values(timed, "train/data_wait")),
        "memory_bytes": used,
        "by_the_log": {key: value for line in log for key, value in line.items() if key.startswith(SHOWN)},
    }
