"""Decoding by libjpeg-turbo in a thread pool, straight into the batch: no worker processes, no pickling."""

import io
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count, pairwise

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from datasets_shards.schema import ShardSetError
from fdtrain.data.batch import Batch, to_batch
from fdtrain.data.intake import Intake
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import IMAGE_MAGIC, Encoded, ShardReader, read_ahead


def decode_with_threads(
    reader: ShardReader,
    batches: Iterable[MicroBatch],
    *,
    device: torch.device,
    threads: int,
    prefetch: int,
    intake: Intake,
) -> Generator[Batch, None, None]:
    """Batches in the order of the plan. Args: as `load_batches`."""
    size, pin = reader.crop_size, device.type == "cuda"

    def decode_some(batch: MicroBatch, encoded: list[Encoded], out: np.ndarray, low: int, high: int) -> None:
        with intake.timing("decode"):
            for i in range(low, high):
                decode_sample(reader, batch, i, encoded[i], out[i], intake)

    with ThreadPoolExecutor(1, "read") as reads, ThreadPoolExecutor(threads, "decode") as decodes:
        waiting: deque[tuple[MicroBatch, Tensor, list[Future[None]]]] = deque()

        def finish_first() -> Batch:
            batch, images, parts = waiting.popleft()
            for part in parts:
                part.result()
            return to_batch(reader, batch, images, device)

        try:
            with closing(read_ahead(reader, batches, prefetch, reads, intake)) as reading:
                for batch, encoded in reading:
                    images = torch.empty((len(encoded), size, size, 3), dtype=torch.uint8, pin_memory=pin)
                    out = images.numpy()
                    bounds = np.linspace(0, len(encoded), threads + 1).astype(int).tolist()
                    parts = [
                        decodes.submit(decode_some, batch, encoded, out, low, high) for low, high in pairwise(bounds)
                    ]
                    waiting.append((batch, images, parts))
                    if len(waiting) > prefetch:
                        yield finish_first()
                while waiting:
                    yield finish_first()
        finally:
            reads.shutdown(cancel_futures=True)
            decodes.shutdown(cancel_futures=True)


def decode_sample(
    reader: ShardReader, batch: MicroBatch, i: int, content: Encoded, out: np.ndarray, intake: Intake
) -> None:
    """Decode one sample of a batch into `out`, or its substitute, whose row then stands in the batch.

    Raises:
        ShardSetError: it can't be read or decoded, and `intake` wants no substitute.
    """
    for attempt in count():
        try:
            if isinstance(content, ShardSetError):
                raise content
            decode_image(reader, int(batch.rows[i]), int(batch.qualities[i]), content, out)
            return
        except ShardSetError as error:
            content = read_substitute(reader, batch, i, attempt, error, intake)


def read_substitute(
    reader: ShardReader, batch: MicroBatch, i: int, attempt: int, error: ShardSetError, intake: Intake
) -> Encoded:
    """Put a bad sample's substitute in its place in the batch, and read it. Raises ShardSetError if there is none."""
    row, quality = int(batch.rows[i]), int(batch.qualities[i])
    batch.rows[i] = intake.substitute(row, quality, int(batch.positions[i]), attempt, error)
    return reader.try_read(int(batch.rows[i]), quality)


def decode_image(reader: ShardReader, row: int, quality: int, content: bytes, out: np.ndarray) -> None:
    """Decode the image of one row, read from the set with that number, into `out`, uint8 `[H, W, 3]`, RGB.

    Raises:
        ShardSetError: it doesn't decode to that size; the message names shard, key and offset.
    """
    try:
        (_decode_jpeg if content.startswith(IMAGE_MAGIC["jpg"]) else _decode_png)(content, out)
    except (ValueError, OSError) as error:
        raise ShardSetError(f"{reader.describe(row, quality)}: does not decode ({error}); pack it again") from None


def _decode_jpeg(content: bytes, out: np.ndarray) -> None:
    # The accurate DCT and the fancy upsampling are what DALI does too; `strict` makes a damaged stream an error.
    image = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, buffer=out)
    if image.shape != out.shape:
        raise ValueError(f"it is {image.shape[1]}x{image.shape[0]}, the manifest says {out.shape[1]}x{out.shape[0]}")


def _decode_png(content: bytes, out: np.ndarray) -> None:
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != out.shape:
        raise ValueError(f"it is {pixels.shape[1]}x{pixels.shape[0]}, the manifest says {out.shape[1]}x{out.shape[0]}")
    out[...] = pixels
