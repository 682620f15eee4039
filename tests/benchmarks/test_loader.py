"""How near the loaders come to the decoder's own limit, in one run: `make benchmarks`.

Prints ratios; asserts no time, since machines differ.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import simplejpeg
import torch

from datasets_shards.schema import open_shard_set
from fdtrain.data.loader import LoaderKind, load_batches
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import ShardReader
from tests.shards import write_root

BATCH, THREADS, ROUNDS = 64, 2, 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2160 images of 256 px at quality 77."""
    return write_root(tmp_path_factory.mktemp("shards") / "root", (77,), (100, 4, 4), frames=4, size=256)


def rate(images: int, action: Callable[[], None]) -> float:
    """Median images/s over some rounds, after one that isn't counted."""
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return images / median(seconds[1:])


def test_loaders_against_libjpeg_turbo_alone(root: Path) -> None:
    shard_set = open_shard_set(root, 77)
    batches = [MicroBatch.of(np.arange(start, start + BATCH)) for start in range(0, 2048, BATCH)]
    with ShardReader(shard_set) as reader:
        encoded = [reader.read_batch(batch) for batch in batches]
        out = np.empty((THREADS, 256, 256, 3), np.uint8)

        def limit() -> None:
            def decode(thread: int) -> None:
                for batch in encoded:
                    for image in batch[thread::THREADS]:
                        simplejpeg.decode_jpeg(image, "RGB", fastdct=False, fastupsample=False, buffer=out[thread])

            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(decode, range(THREADS)))

        def load(kind: LoaderKind) -> None:
            device = torch.device("cpu")
            for batch in load_batches(
                kind, reader, batches, batch_size=BATCH, device=device, threads=THREADS, prefetch=3
            ):
                assert len(batch.rows) == BATCH

        base = rate(2048, limit)
        print(f"\nlibjpeg-turbo, {THREADS} threads into one buffer: {base:.0f} images/s")
        for kind in ("torch", "dali"):
            speed = rate(2048, lambda kind=kind: load(kind))  # type: ignore[misc]
            print(f"{kind} loader: {speed:.0f} images/s, {speed / base:.2f} of it")
