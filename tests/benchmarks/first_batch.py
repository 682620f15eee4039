"""What a fresh process takes to its first batch: `python -m tests.benchmarks.first_batch ROOT KIND` prints JSON."""

import json
import sys
import time
from contextlib import closing
from pathlib import Path

import torch

from fdtrain.config import Config, DataConfig, TrainConfig
from fdtrain.data.loader import LoaderKind, load_batches
from fdtrain.data.run_data import open_data

BATCH = 64


def resident_mb(entry: str) -> float:
    """An entry of /proc/self/status, MB of 10**6 bytes: `VmRSS` is now, `VmHWM` the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) * 1024 / 1e6


def main(root: str, kind: LoaderKind) -> None:
    """Seconds from opening the data to the first batch, and MB that this process has grown by; all else is imported."""
    before, began = resident_mb("VmRSS"), time.perf_counter()
    config = Config(data=DataConfig(root=root), train=TrainConfig(global_batch_size=BATCH, micro_batch_size=BATCH))
    data = open_data(config)
    opened = time.perf_counter()
    with data.reader(), data.training_reader() as reader:  # training has both open
        batches = load_batches(
            kind,
            reader,
            data.plan.walk(0, data.plan.steps_per_epoch, 0, 1),
            batch_size=BATCH,
            device=torch.device("cpu"),
            threads=2,
            prefetch=3,
        )
        with closing(batches):
            batch = next(batches)
            result = {
                "open_s": opened - began,
                "first_batch_s": time.perf_counter() - began,
                "added_mb": resident_mb("VmRSS") - before,
                "peak_mb": resident_mb("VmHWM") - before,
                "samples": data.shard_set.index.num_rows,
                "batch": len(batch.images),
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
