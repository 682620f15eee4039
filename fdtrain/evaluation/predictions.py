"""Predictions as Parquet, written and read by pieces: a split may have millions of samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_shards.schema import INDEX_SCHEMA, ShardSet, quality_name, written_whole
from fdtrain.metrics import PREDICTION_SCHEMA

ORIGIN = b"fdtrain.origin"
"""Key of the file's metadata: which weights and which data the scores are of."""

MEASURED = ("method", "video", "target", "source", "label", "score")
"""The columns that metrics are computed from."""


def write_predictions(
    path: Path, shard_set: ShardSet, rows: np.ndarray, scores: np.ndarray, origin: dict[str, Any] | None = None
) -> None:
    """Write the columns of `PREDICTION_SCHEMA`, so that the file is either absent or whole.

    Neither the index nor what is written is ever in memory as a whole.

    Args:
        path: The file.
        shard_set: What was scored.
        rows: int64 `[N]`, ascending.
        scores: float64 `[N]`, P(fake) of each row.
        origin: Kept with the file, for `read_origin`: JSON values.
    """
    known = [name for name in PREDICTION_SCHEMA.names if name in INDEX_SCHEMA.names]
    quality, first = quality_name(shard_set.manifest.quality), 0
    schema = PREDICTION_SCHEMA.with_metadata({ORIGIN: json.dumps(origin)}) if origin else PREDICTION_SCHEMA
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part, pq.ParquetWriter(part, schema) as writer:
        for piece in shard_set.index.pieces(rows, *known):
            columns = dict(zip(piece.schema.names, piece.columns, strict=True))
            columns["score"] = pa.array(scores[first : first + piece.num_rows])
            columns["quality"] = pa.array([quality] * piece.num_rows)
            table = pa.table({name: columns[name] for name in schema.names})
            writer.write_table(table.cast(schema))
            first += piece.num_rows
        assert first == len(rows) == len(scores)
    pa.default_memory_pool().release_unused()


def read_predictions(path: Path) -> pa.Table:
    """What `compute_metrics` needs of a file of predictions, its words as whole numbers."""
    words = [name for name in MEASURED if pa.types.is_string(PREDICTION_SCHEMA.field(name).type)]
    return pq.read_table(path, columns=list(MEASURED), read_dictionary=words)


def read_origin(path: Path) -> dict[str, Any] | None:
    """What `write_predictions` was told of the scores; None where the file isn't there, or says nothing."""
    if not path.is_file():
        return None
    content = (pq.read_schema(path).metadata or {}).get(ORIGIN)
    return json.loads(content) if content else None


def scored_table(shard_set: ShardSet, rows: np.ndarray, scores: np.ndarray) -> pa.Table:
    """What `read_predictions` would give, straight from the scores."""
    table = shard_set.index.take(rows, *[name for name in MEASURED if name in INDEX_SCHEMA.names])
    return table.append_column("score", pa.array(scores)).select(list(MEASURED))
