"""The whole training loop against a bare one of forward, backward and step, in turn: `make benchmarks`.

The loop decodes its batches, draws them by the plan, agrees on stops, watches for what isn't finite and logs every
step; the bare one has its batches in memory and does nothing else. All steps are of one epoch: what validation and
checkpoints take is no part of the loop's images/s, and tests/benchmarks/test_checkpoint.py measures it.

A quiet machine with a core to spare is needed, since both are wall-clock time, and one that is shared changes its speed
from one process to the next by more than the overhead. So the log of the loop's own steps is asked, too: what they take
beside forward, backward and optimizer, of the time of these. That leaves out only what the loop may slow within them.

On a GPU it is EfficientNet-B4 at 380 px in bf16, on a CPU a smaller network in fp32.
"""

import json
import os
from pathlib import Path
from statistics import median

import pytest

from tests.benchmarks import bare_loop
from tests.benchmarks.bare_loop import BATCH, DEVICE, MODEL, SKIPPED
from tests.conftest import REPOSITORY, run_python
from tests.shards import write_root

STEPS, ROUNDS, SIDE, THREADS = (40, 3, 380, 8) if DEVICE.type == "cuda" else (28, 7, 128, 1)
PAIRS = (-(-STEPS * BATCH // 12), 3, 3)
"""Of identities in the splits; 12 samples are of one."""


def trainer_rate(root: Path, run: Path) -> tuple[float, float]:
    """By the trainer's log, after the first steps: images/s, and what else the steps took, of their work's time."""
    settings = {
        "model.name": MODEL,
        "data.root": root,
        "data.quality": 77,
        "run.dir": run,
        "loader.threads": THREADS,
        "train.epochs": 1,
        "train.max_steps": STEPS,
        "train.global_batch_size": BATCH,
        "train.micro_batch_size": BATCH,
        "train.log_every": 1,
        "checkpoint.every_steps": 1000,
        "tracking.enabled": "false",
    }
    done = run_python("-m", "fdtrain", *(word for key, value in settings.items() for word in (f"--{key}", value)))
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    steps = [line for line in lines if "train/images_per_s" in line][SKIPPED:]
    work = sum(line["train/time/forward_backward"] + line["train/time/optimizer"] for line in steps)
    rate = len(steps) / sum(1 / line["train/images_per_s"] for line in steps)
    return rate, sum(line["train/time/step"] for line in steps) / work - 1


def bare_rate(root: Path) -> float:
    """Images/s of the bare loop, which stays out of this process's way."""
    done = run_python("-m", bare_loop.__name__, root, STEPS, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.timeout(3600)
def test_overhead_of_the_loop(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", (77,), PAIRS, size=SIDE)
    ratios, beside = [], []
    for number in range(ROUNDS):
        if number % 2:  # so that neither is always the one that comes later
            (trainer, share), bare = trainer_rate(root, tmp_path / f"run-{number}"), bare_rate(root)
        else:
            bare, (trainer, share) = bare_rate(root), trainer_rate(root, tmp_path / f"run-{number}")
        ratios.append(bare / trainer - 1)
        beside.append(share)
        print(f"\nbare {bare:.2f} images/s, trainer {trainer:.2f} images/s", end="")
    spread = f"{min(ratios):.1%} to {max(ratios):.1%}"
    print(f"\noverhead of the loop: {median(ratios):.1%}, {spread} in {ROUNDS} pairs (asked: below 3%)", end="")
    print(f"; within its own steps {median(beside):.2%}, {min(beside):.2%} to {max(beside):.2%}", end="")
    print(f", load average {os.getloadavg()[0]:.1f}")
