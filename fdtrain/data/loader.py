"""Batches on the device, in the order of the plan, by DALI or by libjpeg-turbo: the same batches either way."""

from collections.abc import Generator, Iterable
from typing import Literal

import torch

from fdtrain.data.batch import Batch
from fdtrain.data.intake import Intake
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import ShardReader
from fdtrain.data.threads import decode_with_threads

LoaderKind = Literal["dali", "torch"]


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
    batches: Iterable[MicroBatch],
    *,
    batch_size: int,
    device: torch.device,
    threads: int,
    prefetch: int,
    intake: Intake | None = None,
) -> Generator[Batch, None, None]:
    """Read and decode batches in order, ahead of the consumer. Close the iterator to stop its threads.

    Args:
        kind: "dali" or "torch".
        reader: The shard set.
        batches: What to read, in the order of the plan.
        batch_size: The largest of them.
        device: Where the batches go.
        threads: Decoding threads.
        prefetch: Batches in flight.
        intake: Counts, and says what is done about bad samples. Default: they are errors.

    Raises:
        ShardSetError: an image that can't be read or decoded; the message names shard, key and offset.
    """
    intake = intake or Intake()
    if kind == "dali":
        from fdtrain.data.dali import decode_with_dali

        return decode_with_dali(
            reader, batches, batch_size=batch_size, device=device, threads=threads, prefetch=prefetch, intake=intake
        )
    return decode_with_threads(reader, batches, device=device, threads=threads, prefetch=prefetch, intake=intake)
