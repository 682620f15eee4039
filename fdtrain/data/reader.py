"""Encoded images out of the tars: by offset from the index, with pread, ahead of the training thread."""

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np

from datasets_shards.schema import ShardSet, ShardSetError
from fdtrain.data.plan import MicroBatch

IMAGE_MAGIC = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


class ShardReader:
    """Reads the images of shard sets by row number. Safe for several threads; close it, or use it in a `with`.

    Args:
        shard_sets: The opened sets of one root: the same row is the same sample in each, at another quality.

    Raises:
        ShardSetError: the sets hold different samples, or crops of different sizes.
    """

    def __init__(self, *shard_sets: ShardSet) -> None:
        first = shard_sets[0]
        for other in shard_sets[1:]:
            if not other.index["key"].equals(first.index["key"]) or other.crop_size != first.crop_size:
                raise ShardSetError(f"{other.folder}: holds other samples or crops than {first.folder}; pack it again")
        self.crop_size = first.crop_size
        self.labels = first.index["label"].to_numpy().astype(np.int64)
        self._keys = first.index["key"]
        self._tars = [_Tars(shard_set) for shard_set in shard_sets]

    def read(self, row: int, quality: int = 0) -> bytes:
        """The encoded image of one row, of the set with that number.

        Raises:
            ShardSetError: the tar is too short, or holds no image there; the message names shard, key and offset.
        """
        content = self._tars[quality].read(row)
        if content is None:
            raise ShardSetError(
                f"{self.describe(row, quality)}: no image there; the tar is damaged or changed, pack it again"
            )
        return content

    def read_batch(self, batch: MicroBatch) -> list[bytes]:
        """The encoded images of a batch, as `read`."""
        return [self.read(int(row), int(quality)) for row, quality in zip(batch.rows, batch.qualities, strict=True)]

    def describe(self, row: int, quality: int = 0) -> str:
        """Where a row's image lies, for messages."""
        path, offset = self._tars[quality].place(row)
        return f"{path}: sample {self._keys[row]} at offset {offset}"

    def close(self) -> None:
        """Close the tars."""
        for tars in self._tars:
            tars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Tars:
    """The open tars of one set."""

    def __init__(self, shard_set: ShardSet) -> None:
        index = shard_set.index
        self._magic = IMAGE_MAGIC[shard_set.manifest.extension]
        shards = index["shard"].combine_chunks()
        self._paths = [shard_set.folder / name for name in shards.dictionary.to_pylist()]
        self._shard_of = shards.indices.to_numpy()
        self._offsets = index["offset"].to_numpy()
        self._sizes = index["size"].to_numpy()
        # Opened here, not at the first read: threads then share them with no lock.
        self._files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self._paths]

    def read(self, row: int) -> bytes | None:
        """The bytes of a row's image, or None where they aren't one."""
        size = int(self._sizes[row])
        # pread, not a memory map: a tar that shrinks under a map is a SIGBUS, here it is a short read.
        content = os.pread(self._files[self._shard_of[row]], size, int(self._offsets[row]))
        return content if len(content) == size and content.startswith(self._magic) else None

    def place(self, row: int) -> tuple[Path, int]:
        return self._paths[self._shard_of[row]], int(self._offsets[row])

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())


def read_ahead(
    reader: ShardReader, batches: Iterable[MicroBatch], depth: int, pool: ThreadPoolExecutor
) -> Generator[tuple[MicroBatch, list[bytes]], None, None]:
    """Read batches in order, up to `depth` of them ahead of the consumer.

    Args:
        reader: Where from.
        batches: What to read.
        depth: Batches in flight.
        pool: Threads that read.
    """
    waiting: deque[tuple[MicroBatch, Future[list[bytes]]]] = deque()
    for batch in batches:
        waiting.append((batch, pool.submit(reader.read_batch, batch)))
        if len(waiting) > depth:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()
