"""Scores of a split: each sample once on any number of ranks, and the same numbers on each."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import numpy as np
import torch
import torch.distributed as dist

from fdtrain.data.loader import LoaderKind, load_batches
from fdtrain.data.plan import evaluation_batches
from fdtrain.data.reader import ShardReader
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task


@torch.inference_mode()
def score_split(
    task: Task,
    reader: ShardReader,
    rows: np.ndarray,
    runtime: Runtime,
    *,
    loader: LoaderKind,
    batch_size: int,
    threads: int,
    prefetch: int,
    on_batch: Callable[[int], None] = lambda samples: None,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """P(fake) of each row, float64 `[N]`, on every rank. Collective.

    Always in float32, whatever the model is trained in, so that a model has one score: at validation and test, as a
    champion, in `evaluate` and `predict` and served, on any device.

    Args:
        task: In evaluation mode, the same weights on every rank.
        reader: The shard set.
        rows: int64 `[N]`.
        runtime: This rank's surroundings.
        loader: Which decoder.
        batch_size: Samples of one forward pass.
        threads: Decoding threads.
        prefetch: Batches in flight.
        on_batch: Called with the number of samples after each batch of this rank, for a progress bar.
        check: Called between batches, equally often on every rank, so that it may be collective; may raise.
    """
    plan = list(evaluation_batches(rows, batch_size, runtime.rank, runtime.world_size))
    # Each rank fills in its batches and leaves zeros elsewhere, so that the sum over the ranks is the whole.
    scores = torch.zeros(len(rows), dtype=torch.float64)
    batches = load_batches(
        loader,
        reader,
        plan,
        batch_size=batch_size,
        device=runtime.device,
        threads=threads,
        prefetch=prefetch,
    )
    with closing(batches), full_precision():
        for part, batch in zip(plan, batches, strict=True):
            first = part.number * batch_size
            scores[first : first + len(part.rows)] = task.scores(batch).cpu()
            on_batch(len(part.rows))
            check()
    rounds = -(-len(rows) // (batch_size * runtime.world_size))
    for _ in range(len(plan), rounds):  # another rank has one more batch than this one
        check()
    if runtime.world_size > 1:
        dist.all_reduce(scores)
    return scores.numpy()


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply in float32 itself within a run whose `precision` is tf32."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
