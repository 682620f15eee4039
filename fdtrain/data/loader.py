"""Batches on the device, in the order of the plan, by DALI or by libjpeg-turbo: the same batches either way."""

import io
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from datasets_shards.schema import ShardSetError
from fdtrain.data.reader import ShardReader, read_ahead

LoaderKind = Literal["dali", "torch"]


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device.

    Args:
        images: uint8 `[B, 3, H, W]`, channels_last, RGB.
        labels: int64 `[B]`, 1 = fake.
        rows: int64 `[B]`, row numbers of the index.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor


def choose_loader(kind: Literal["dali", "torch", "auto"], device: torch.device) -> tuple[LoaderKind, str]:
    """Resolve `auto`, with the reason for people to read."""
    if kind != "auto":
        return kind, "as configured"
    if device.type == "cuda":
        return "dali", "decodes on the GPU"
    return "torch", "libjpeg-turbo in a thread pool is the faster decoder on a CPU"


def load_batches(
    kind: LoaderKind,
    reader: ShardReader,
    batches: Iterable[np.ndarray],
    *,
    batch_size: int,
    device: torch.device,
    threads: int,
    prefetch: int,
) -> Generator[Batch, None, None]:
    """Read and decode batches in order, ahead of the consumer. Close the iterator to stop its threads.

    Args:
        kind: "dali" or "torch".
        reader: The shard set.
        batches: int64 row numbers of each batch.
        batch_size: The largest of them.
        device: Where the batches go.
        threads: Decoding threads.
        prefetch: Batches in flight.

    Raises:
        ShardSetError: an image that can't be read or decoded; the message names shard, key and offset.
    """
    if kind == "dali":
        from fdtrain.data.dali import decode_with_dali

        return decode_with_dali(
            reader, batches, batch_size=batch_size, device=device, threads=threads, prefetch=prefetch
        )
    return _decode_with_torch(reader, batches, device=device, threads=threads, prefetch=prefetch)


def to_batch(reader: ShardReader, rows: np.ndarray, images: Tensor, device: torch.device) -> Batch:
    """Put decoded images, uint8 `[B, H, W, 3]`, and what the index says of them on the device."""
    labels = torch.from_numpy(reader.labels[rows])
    # A permuted view of HWC memory is what channels_last means: no copy.
    images = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return Batch(images, labels.to(device, non_blocking=True), torch.from_numpy(rows))


def _decode_with_torch(
    reader: ShardReader, batches: Iterable[np.ndarray], *, device: torch.device, threads: int, prefetch: int
) -> Generator[Batch, None, None]:
    size, pin = reader.crop_size, device.type == "cuda"

    def decode_some(rows: np.ndarray, encoded: list[bytes], out: np.ndarray) -> None:
        for row, content, image in zip(rows, encoded, out, strict=True):
            decode_image(reader, int(row), content, image)

    with ThreadPoolExecutor(1, "read") as reads, ThreadPoolExecutor(threads, "decode") as decodes:
        waiting: deque[tuple[np.ndarray, Tensor, list[Future[None]]]] = deque()

        def finish_first() -> Batch:
            rows, images, parts = waiting.popleft()
            for part in parts:
                part.result()
            return to_batch(reader, rows, images, device)

        try:
            with closing(read_ahead(reader, batches, prefetch, reads)) as reading:
                for rows, encoded in reading:
                    images = torch.empty((len(rows), size, size, 3), dtype=torch.uint8, pin_memory=pin)
                    out = images.numpy()
                    bounds = np.linspace(0, len(rows), threads + 1).astype(int)
                    parts = [
                        decodes.submit(decode_some, rows[low:high], encoded[low:high], out[low:high])
                        for low, high in pairwise(bounds)
                    ]
                    waiting.append((rows, images, parts))
                    if len(waiting) > prefetch:
                        yield finish_first()
                while waiting:
                    yield finish_first()
        finally:
            reads.shutdown(cancel_futures=True)
            decodes.shutdown(cancel_futures=True)


def decode_image(reader: ShardReader, row: int, content: bytes, out: np.ndarray) -> None:
    """Decode the image of one row into `out`, uint8 `[H, W, 3]`, RGB.

    Raises:
        ShardSetError: it doesn't decode to that size; the message names shard, key and offset.
    """
    try:
        (_decode_png if reader.extension == "png" else _decode_jpeg)(content, out)
    except (ValueError, OSError) as error:
        raise ShardSetError(f"{reader.describe(row)}: does not decode ({error}); pack it again") from None


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
