"""Scores of a split: each sample once on any number of ranks, and the same numbers on each."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from datasets_shards.schema import INDEX_SCHEMA, Quality, ShardSet, quality_name, write_atomic
from fdtrain.data.loader import LoaderKind, choose_loader, load_batches
from fdtrain.data.plan import evaluation_batches
from fdtrain.data.reader import ShardReader
from fdtrain.data.remote import open_cache, open_set
from fdtrain.data.rows import require_rows
from fdtrain.metrics import PREDICTION_SCHEMA, compute_metrics, jsonable
from fdtrain.models.weights import open_model
from fdtrain.runtime import Runtime, start
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
    """P(fake) of each row, float32 `[N]`, on every rank. Collective.

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
    scores = torch.zeros(len(rows), dtype=torch.float32)
    batches = load_batches(
        loader,
        reader,
        plan,
        batch_size=batch_size,
        device=runtime.device,
        threads=threads,
        prefetch=prefetch,
    )
    with closing(batches):
        for part, batch in zip(plan, batches, strict=True):
            with runtime.autocast():
                values = task.scores(batch)
            first = part.number * batch_size
            scores[first : first + len(part.rows)] = values.cpu()
            on_batch(len(part.rows))
            check()
    rounds = -(-len(rows) // (batch_size * runtime.world_size))
    for _ in range(len(plan), rounds):  # another rank has one more batch than this one
        check()
    dist.all_reduce(scores)
    return scores.numpy()


def prediction_table(shard_set: ShardSet, rows: np.ndarray, scores: np.ndarray) -> pa.Table:
    """The columns of `PREDICTION_SCHEMA` for these rows."""
    known = [name for name in PREDICTION_SCHEMA.names if name in INDEX_SCHEMA.names]
    samples = shard_set.index.take(rows, *known)
    quality = pa.array([quality_name(shard_set.manifest.quality)] * len(rows))
    table = samples.append_column("score", pa.array(scores)).append_column("quality", quality)
    return table.select(PREDICTION_SCHEMA.names).cast(PREDICTION_SCHEMA)


def write_predictions(path: Path, table: pa.Table) -> None:
    """Write Parquet so that it is either absent or whole."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, sink.getvalue().to_pybytes())


def evaluate(
    place: str | Path,
    root: str,
    quality: Quality,
    split: str,
    out: Path,
    *,
    batch_size: int,
    cache_dir: str | None,
    cache_bytes: int,
) -> None:
    """Score a model on a shard set; write the metrics and, beside them, the predictions as Parquet.

    Args:
        place: As `open_model`.
        root: Of the shard sets, a path or a URL.
        quality: Of the one that is read.
        split: Of it.
        out: The `.json` file of the metrics.
        batch_size: Samples of one forward pass.
        cache_dir: For a root by URL.
        cache_bytes: Likewise.

    Raises:
        UserError: the model can't be loaded.
        ShardSetError: the shard set can't be used.
    """
    shard_set, tars = open_set(root, quality, open_cache(root, cache_dir, cache_bytes))
    rows = require_rows(shard_set, split)
    model, card = open_model(place)
    task = Task(model, card["input"])
    with start("fp32") as runtime, ShardReader(shard_set, tars=[tars]) as reader:
        kind, _ = choose_loader("auto", runtime.device)
        scores = score_split(
            task.to(runtime.device),
            reader,
            rows,
            runtime,
            loader=kind,
            batch_size=batch_size,
            threads=runtime.decode_threads,
            prefetch=3,
        )
        if runtime.is_main:
            table = prediction_table(shard_set, rows, scores)
            metrics = compute_metrics(table, split)
            write_predictions(out.with_suffix(".parquet"), table)
            write_atomic(out, json.dumps(jsonable(metrics), indent=2).encode() + b"\n")
            for name in ("auc", "acc", "f1"):
                print(f"{split}/video/{name} {metrics[f'{split}/video/{name}']:.4f}")
            print(f"metrics in {out}, predictions in {out.with_suffix('.parquet')}")
