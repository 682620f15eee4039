"""Encoded images out of the tars: by offset from the index, with pread, ahead of the training thread."""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np

from datasets_shards.schema import ShardSet, ShardSetError
from fdtrain.data.intake import Intake
from fdtrain.data.plan import MicroBatch
from fdtrain.data.tars import LocalTars, Tars

IMAGE_MAGIC = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


Encoded = bytes | ShardSetError
"""An encoded image, or why there is none."""


class ShardReader:
    """Reads the images of shard sets by row number. Safe for several threads; close it, or use it in a `with`.

    Args:
        shard_sets: The opened sets of one root: the same row is the same sample in each, at another quality.
        tars: Those of each set, closed with the reader. Default: those in the sets' folders.

    Raises:
        ShardSetError: the sets hold different samples, or crops of different sizes.
    """

    def __init__(self, *shard_sets: ShardSet, tars: Sequence[Tars] | None = None) -> None:
        first = shard_sets[0]
        for other in shard_sets[1:]:
            if not other.index["key"].equals(first.index["key"]) or other.crop_size != first.crop_size:
                raise ShardSetError(f"{other.folder}: holds other samples or crops than {first.folder}; pack it again")
        self.crop_size = first.crop_size
        self.labels = first.index["label"].to_numpy().astype(np.int64)
        self._keys = first.index["key"]
        opened = [LocalTars(shard_set) for shard_set in shard_sets] if tars is None else tars
        self._sets = [_Images(shard_set, there) for shard_set, there in zip(shard_sets, opened, strict=True)]

    def read(self, row: int, quality: int = 0) -> bytes:
        """The encoded image of one row, of the set with that number.

        Raises:
            ShardSetError: the tar is too short, or holds no image there; the message names shard, key and offset.
        """
        images = self._sets[quality]
        try:
            content = images.read(row)
        except ShardSetError as error:  # about the tar
            fault = str(error).removeprefix(f"{images.place(row)[0]}: ")
            raise ShardSetError(f"{self.describe(row, quality)}: {fault}") from error
        if content is None:
            raise ShardSetError(
                f"{self.describe(row, quality)}: no image there; the tar is damaged or changed: {images.tars.remedy}"
            )
        return content

    def try_read(self, row: int, quality: int = 0) -> Encoded:
        """As `read`, with the error in place of the image."""
        try:
            return self.read(row, quality)
        except ShardSetError as error:
            return error

    def read_batch(self, batch: MicroBatch) -> list[Encoded]:
        """The encoded images of a batch, each as `try_read`."""
        return [self.try_read(int(row), int(quality)) for row, quality in zip(batch.rows, batch.qualities, strict=True)]

    def prepare(self, batch: MicroBatch) -> None:
        """Let tars that have to be fetched be on their way before the batch's turn comes."""
        for quality, images in enumerate(self._sets):
            images.prepare(batch.rows[batch.qualities == quality])

    def describe(self, row: int, quality: int = 0) -> str:
        """Where a row's image lies, for messages."""
        path, offset = self._sets[quality].place(row)
        return f"{path}: sample {self._keys[row]} at offset {offset}"

    def close(self) -> None:
        """Close the tars."""
        for images in self._sets:
            images.tars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Images:
    """Where the images of one set are."""

    def __init__(self, shard_set: ShardSet, tars: Tars) -> None:
        index = shard_set.index
        self.tars = tars
        self._magic = IMAGE_MAGIC[shard_set.manifest.extension]
        shards = index["shard"].combine_chunks()
        self._shards: list[str] = shards.dictionary.to_pylist()
        self._shard_of = shards.indices.to_numpy()
        self._offsets = index["offset"].to_numpy()
        self._sizes = index["size"].to_numpy()

    def read(self, row: int) -> bytes | None:
        """The bytes of a row's image, or None where they aren't one. Raises ShardSetError, which names the tar."""
        size = int(self._sizes[row])
        content = self.tars.read(self._shards[self._shard_of[row]], int(self._offsets[row]), size)
        return content if len(content) == size and content.startswith(self._magic) else None

    def prepare(self, rows: np.ndarray) -> None:
        """Tell the tars which of them hold these rows."""
        self.tars.prepare(self._shards[shard] for shard in dict.fromkeys(self._shard_of[rows].tolist()))

    def place(self, row: int) -> tuple[str, int]:
        """Path or URL of a row's tar, and the offset in it."""
        return f"{self.tars.place}/{self._shards[self._shard_of[row]]}", int(self._offsets[row])


def read_ahead(
    reader: ShardReader, batches: Iterable[MicroBatch], depth: int, pool: ThreadPoolExecutor, intake: Intake
) -> Generator[tuple[MicroBatch, list[Encoded]], None, None]:
    """Read batches in order, up to `depth` of them ahead of the consumer.

    Args:
        reader: Where from.
        batches: What to read.
        depth: Batches in flight.
        pool: Threads that read.
        intake: Told how long it takes.
    """

    def read(batch: MicroBatch) -> list[Encoded]:
        with intake.timing("read"):
            return reader.read_batch(batch)

    waiting: deque[tuple[MicroBatch, Future[list[Encoded]]]] = deque()
    for batch in batches:
        reader.prepare(batch)
        waiting.append((batch, pool.submit(read, batch)))
        if len(waiting) > depth:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()
