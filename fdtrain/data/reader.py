"""Encoded images out of the tars: by offset from the index, with pread, ahead of the training thread."""

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np

from datasets_shards.schema import ShardSet, ShardSetError

IMAGE_MAGIC = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


class ShardReader:
    """Reads the images of a shard set by row number. Safe for several threads; close it, or use it in a `with`.

    Args:
        shard_set: The opened set.
    """

    def __init__(self, shard_set: ShardSet) -> None:
        index = shard_set.index
        self.folder = shard_set.folder
        self.crop_size = shard_set.crop_size
        self.extension = shard_set.manifest.extension
        self.labels = index["label"].to_numpy().astype(np.int64)
        self._keys = index["key"]
        shards = index["shard"].combine_chunks()
        self._shards: list[str] = shards.dictionary.to_pylist()
        self._shard_of = shards.indices.to_numpy()
        self._offsets = index["offset"].to_numpy()
        self._sizes = index["size"].to_numpy()
        # Opened here, not at the first read: threads then share them with no lock.
        self._files = [os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC) for name in self._shards]

    def read(self, row: int) -> bytes:
        """The encoded image of one row.

        Raises:
            ShardSetError: the tar is too short, or holds no image there; the message names shard, key and offset.
        """
        shard = self._shard_of[row]
        offset, size = int(self._offsets[row]), int(self._sizes[row])
        # pread, not a memory map: a tar that shrinks under a map is a SIGBUS, here it is a short read.
        content = os.pread(self._files[shard], size, offset)
        if len(content) != size or not content.startswith(IMAGE_MAGIC[self.extension]):
            raise ShardSetError(f"{self.describe(row)}: no image there; the tar is damaged or changed, pack it again")
        return content

    def read_rows(self, rows: np.ndarray) -> list[bytes]:
        """The encoded images of several rows, as `read`."""
        return [self.read(int(row)) for row in rows]

    def describe(self, row: int) -> str:
        """Where a row's image lies, for messages."""
        path: Path = self.folder / self._shards[self._shard_of[row]]
        return f"{path}: sample {self._keys[row]} at offset {self._offsets[row]}"

    def close(self) -> None:
        """Close the tars."""
        while self._files:
            os.close(self._files.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ahead(
    reader: ShardReader, batches: Iterable[np.ndarray], depth: int, pool: ThreadPoolExecutor
) -> Generator[tuple[np.ndarray, list[bytes]], None, None]:
    """Read batches in order, up to `depth` of them ahead of the consumer.

    Args:
        reader: Where from.
        batches: int64 row numbers of each batch.
        depth: Batches in flight.
        pool: Threads that read.
    """
    waiting: deque[tuple[np.ndarray, Future[list[bytes]]]] = deque()
    for rows in batches:
        waiting.append((rows, pool.submit(reader.read_rows, rows)))
        if len(waiting) > depth:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()
