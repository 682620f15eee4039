"""One scorer on one shard set: scores, predictions as Parquet, metrics with intervals."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from datasets_shards.schema import ShardSet, quality_name
from fdtrain.data.reader import ShardReader
from fdtrain.data.remote import OpenedSet
from fdtrain.evaluation.predictions import read_origin, read_predictions, write_predictions
from fdtrain.evaluation.scorers import Scorer
from fdtrain.metrics import MEAN, compute_metrics, remarks
from fdtrain.runtime import Runtime


@dataclass(frozen=True)
class Measuring:
    """How predictions become numbers.

    Args:
        split: What is scored.
        draws: Of the bootstrap.
        seed: Of the bootstrap.
        video_score: As `VIDEO_SCORES`.
    """

    split: str
    draws: int
    seed: int = 0
    video_score: str = MEAN

    def metrics(self, path: Path, scorer: Scorer) -> dict[str, float]:
        """Of the predictions in a file, with a warning for each reason why some are undefined."""
        table = read_predictions(path)
        for line in remarks(table, self.split):
            print(f"warning: {path}: {line}", flush=True)
        if len(self._thresholds(scorer)) < len(scorer.thresholds):
            print(
                f"{path}: with video_score {self.video_score} the threshold chosen for videos isn't used, which is of "
                "means",
                flush=True,
            )
        return compute_metrics(
            table,
            self.split,
            video_score=self.video_score,
            thresholds=self._thresholds(scorer),
            draws=self.draws,
            seed=self.seed,
        )

    def undefined(self, path: Path, scorer: Scorer) -> dict[str, float]:
        """What `metrics` would name, without the intervals, all of it NaN: of a model whose scores aren't finite."""
        table = read_predictions(path)
        zeros = pa.array(np.zeros(len(table), np.float32))
        finite = table.set_column(table.schema.get_field_index("score"), "score", zeros)
        return dict.fromkeys(compute_metrics(finite, self.split, thresholds=self._thresholds(scorer)), math.nan)

    def _thresholds(self, scorer: Scorer) -> dict[str, float]:
        # That of videos was chosen on means of frames.
        return {
            level: value for level, value in scorer.thresholds.items() if level == "frame" or self.video_score == MEAN
        }


def evaluate_cell(
    scorer: Scorer, opened: OpenedSet, rows: np.ndarray, path: Path, runtime: Runtime, measuring: Measuring
) -> dict[str, float]:
    """Score, unless `path` holds these scores already, and measure. Collective.

    Args:
        scorer: What is judged.
        opened: The shard set.
        rows: int64 `[N]`, those of the split.
        path: Of the predictions.
        runtime: This rank's surroundings.
        measuring: How.

    Raises:
        FloatingPointError: a score is not finite; the predictions are written.
    """
    shard_set = opened.shard_set
    manifest = shard_set.manifest
    compression = manifest.source.get("compression", "unknown")
    origin = {"scores": scorer.digest, "data": manifest.digest, "split": measuring.split, "compression": compression}
    quality = quality_name(shard_set.manifest.quality)
    if runtime.on_main(lambda: read_origin(path)) == origin:
        if runtime.is_main:
            print(f"{scorer.name} on {quality}: taken from {path}, same weights and data", flush=True)
    else:
        scores = _score(scorer, opened, rows, runtime)
        runtime.on_main(lambda: write_predictions(path, shard_set, rows, scores, origin))

    def measure() -> dict[str, float]:
        try:
            return measuring.metrics(path, scorer)
        except FloatingPointError as error:
            raise FloatingPointError(f"{scorer.name} on {quality}: {error}") from None

    return runtime.on_main(measure)


def _score(scorer: Scorer, opened: OpenedSet, rows: np.ndarray, runtime: Runtime) -> np.ndarray:
    shard_set: ShardSet = opened.shard_set
    with ShardReader(shard_set, tars=[opened.tars]) as reader:
        return scorer.score(reader, rows, runtime)
