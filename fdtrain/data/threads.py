"""Decoding by libjpeg-turbo in a thread pool, straight into the batch: no worker processes, no pickling."""

import io
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, pairwise

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from datasets_shards.schema import ShardSetError, pack_again
from fdtrain.data.batch import Batch, to_batch
from fdtrain.data.intake import Intake
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import Encoded, ShardReader, prepared, working

JPEG_MAGIC = b"\xff\xd8\xff"


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
    reads, decodes = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(threads, "decode")
    waiting: deque[tuple[MicroBatch, Tensor, Future[list[Future[None]]]]] = deque()

    def read(batch: MicroBatch, out: np.ndarray) -> list[Future[None]]:
        with intake.timing("read"):
            encoded = reader.read_batch(batch, intake)
        # From this thread, so that a batch is decoded as soon as it is read, whatever the consumer does.
        bounds = np.linspace(0, len(encoded), threads + 1).astype(int).tolist()
        return [decodes.submit(decode_some, batch, encoded, out, low, high) for low, high in pairwise(bounds)]

    def decode_some(batch: MicroBatch, encoded: list[Encoded], out: np.ndarray, low: int, high: int) -> None:
        with intake.timing("decode"):
            for i in range(low, high):
                decode_sample(reader, batch, i, encoded[i], out[i], intake)

    def finish_first() -> Batch:
        batch, images, reading = waiting.popleft()
        for part in reading.result():
            part.result()
        return to_batch(reader, batch, images, device)

    with working(reader, reads, decodes):
        for batch in prepared(reader, batches, prefetch):
            images = torch.empty((len(batch.rows), size, size, 3), dtype=torch.uint8, pin_memory=pin)
            waiting.append((batch, images, reads.submit(read, batch, images.numpy())))
            if len(waiting) > prefetch:
                yield finish_first()
        while waiting:
            yield finish_first()


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
    quality = int(batch.qualities[i])
    row = intake.substitute(int(batch.rows[i]), quality, int(batch.positions[i]), attempt, error)
    batch.rows[i] = row
    return intake.fault(row, quality) or reader.try_read(row, quality)


def decode_image(reader: ShardReader, row: int, quality: int, content: bytes, out: np.ndarray) -> None:
    """Decode the image of one row, read from the set with that number, into `out`, uint8 `[H, W, 3]`, RGB.

    Raises:
        ShardSetError: it doesn't decode to that size; the message names shard, key and offset.
    """
    try:
        (_decode_jpeg if content.startswith(JPEG_MAGIC) else _decode_png)(content, out)
    except (ValueError, OSError, SyntaxError) as error:  # the last is Pillow's for a broken PNG
        raise ShardSetError(
            f"{reader.describe(row, quality)}: does not decode ({error}), though it is what was packed: "
            f"{pack_again(reader.place(quality))}"
        ) from None


def _decode_jpeg(content: bytes, out: np.ndarray) -> None:
    # The accurate DCT and the fancy upsampling are what DALI does too; `strict` makes a damaged stream an error.
    image = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, buffer=out)
    if image.shape != out.shape:
        raise ValueError(f"it is {image.shape[1]}x{image.shape[0]}, the manifest says {out.shape[1]}x{out.shape[0]}")


def _decode_png(content: bytes, out: np.ndarray) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:  # its message is an address in memory
        raise ValueError("it is neither a JPEG nor a PNG") from None
    if pixels.shape != out.shape:
        raise ValueError(f"it is {pixels.shape[1]}x{pixels.shape[0]}, the manifest says {out.shape[1]}x{out.shape[0]}")
    out[...] = pixels
