"""Encoded images out of the tars: by offset from the index, with pread, ahead of the training thread."""

import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self

import numpy as np

from datasets_shards.schema import ShardSet, ShardSetError, check_same_samples
from fdtrain.data.intake import Intake
from fdtrain.data.plan import MicroBatch
from fdtrain.data.tars import LocalTars, Tars

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
            check_same_samples(first, other)
        self.crop_size = first.crop_size
        self._index, self._labels = first.index, first.index.numbers("label")
        opened = [LocalTars(shard_set) for shard_set in shard_sets] if tars is None else tars
        self._sets = [_Images(shard_set, there) for shard_set, there in zip(shard_sets, opened, strict=True)]

    def read(self, row: int, quality: int = 0) -> bytes:
        """The encoded image of one row, of the set with that number: the very bytes that were packed.

        Raises:
            ShardSetError: the tar can't be read or holds other bytes there; the message names shard, key and offset.
        """
        images = self._sets[quality]
        try:
            content, crc = images.read(row)
        except ShardSetError as error:  # about the tar
            fault = str(error).removeprefix(f"{images.place(row)[0]}: ")
            raise ShardSetError(f"{self.describe(row, quality)}: {fault}") from error
        # Decoders let many a damaged image pass, each another one, with other pixels than it had.
        if zlib.crc32(content) != crc:
            raise ShardSetError(
                f"{self.describe(row, quality)}: the image there isn't the one that was packed (its CRC-32 differs); "
                f"the tar is damaged or changed: {images.tars.remedy}"
            )
        return content

    def try_read(self, row: int, quality: int = 0) -> Encoded:
        """As `read`, with the error in place of the image."""
        try:
            return self.read(row, quality)
        except ShardSetError as error:
            return error

    def read_batch(self, batch: MicroBatch, intake: Intake | None = None) -> list[Encoded]:
        """The encoded images of a batch, each as `try_read`; what `intake` knows to be bad isn't read again."""
        places = zip(batch.rows.tolist(), batch.qualities.tolist(), strict=True)
        return [(intake and intake.fault(row, quality)) or self.try_read(row, quality) for row, quality in places]

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """int64 `[B]`: 1 = fake."""
        return self._labels[rows].astype(np.int64)

    def prepare(self, batch: MicroBatch) -> None:
        """Let tars that have to be fetched be on their way before the batch's turn comes."""
        for quality, images in enumerate(self._sets):
            images.prepare(batch.rows[batch.qualities == quality])

    def describe(self, row: int, quality: int = 0) -> str:
        """Where a row's image lies, for messages."""
        path, offset = self._sets[quality].place(row)
        key = self._index.take(np.array([row]), "key")["key"][0]
        return f"{path}: sample {key} at offset {offset}"

    def place(self, quality: int = 0) -> str:
        """Folder or URL of a set, for messages."""
        return self._sets[quality].tars.place

    def cancel(self) -> None:
        """Give up what is being fetched from a store; the reader stays usable, see `Tars.cancel`."""
        for images in self._sets:
            images.tars.cancel()

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
        self.tars = tars
        self._shard_of, self._shards = shard_set.index.codes("shard")
        self._offsets, self._sizes = shard_set.index.numbers("offset"), shard_set.index.numbers("size")
        self._crcs = shard_set.index.numbers("crc32")

    def read(self, row: int) -> tuple[bytes, int]:
        """The bytes of a row's image, and the CRC-32 that they must have. Raises ShardSetError, which names the tar."""
        shard, offset = self._shards[self._shard_of[row]], int(self._offsets[row])
        return self.tars.read(shard, offset, int(self._sizes[row])), int(self._crcs[row])

    def prepare(self, rows: np.ndarray) -> None:
        """Tell the tars which of them hold these rows."""
        self.tars.prepare(self._shards[shard] for shard in dict.fromkeys(self._shard_of[rows].tolist()))

    def place(self, row: int) -> tuple[str, int]:
        """Path or URL of a row's tar, and the offset in it."""
        return f"{self.tars.place}/{self._shards[self._shard_of[row]]}", int(self._offsets[row])


def prepared(reader: ShardReader, batches: Iterable[MicroBatch], depth: int) -> Iterator[MicroBatch]:
    """The batches, each when the tars of the `depth` batches after it are on their way as well."""
    coming: deque[MicroBatch] = deque()
    for batch in batches:
        reader.prepare(batch)
        coming.append(batch)
        if len(coming) > depth:
            yield coming.popleft()
    yield from coming


@contextmanager
def working(reader: ShardReader, *pools: ThreadPoolExecutor) -> Iterator[None]:
    """Around the use of a loader's pools: they are shut down at its end, and nothing is waited for if that is early."""
    try:
        yield
    except BaseException:
        for pool in pools:  # first, or the reader would go on to the next batch and fetch what was given up
            pool.shutdown(wait=False, cancel_futures=True)
        reader.cancel()
        raise
    finally:
        for pool in pools:
            pool.shutdown()
