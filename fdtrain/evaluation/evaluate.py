"""`python -m fdtrain evaluate`: one model on shard sets, or a matrix of models and qualities."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets_shards.schema import Quality, check_same_samples, quality_name, write_atomic
from fdtrain.config import UserError
from fdtrain.data.remote import OpenedSet, open_cache, open_set, opening
from fdtrain.data.rows import require_rows
from fdtrain.evaluation.cell import Measuring, evaluate_cell
from fdtrain.evaluation.matrix import check_method, matrix_table, write_matrix
from fdtrain.evaluation.routed import open_scorer
from fdtrain.evaluation.scorers import Scorer
from fdtrain.metrics import MEAN, VIDEO_SCORE, describe, jsonable, metric_name
from fdtrain.runtime import Runtime, start

SHOWN = ("auc", "acc", "f1")


@dataclass(frozen=True)
class Data:
    """What is scored: fields are the flags of their names, with `data.`."""

    root: str
    qualities: tuple[Quality, ...]
    cache_dir: str | None
    cache_bytes: int

    @opening()
    def open(self, split: str) -> tuple[dict[str, OpenedSet], np.ndarray]:
        """The sets by name of their quality, and the rows of a split, which are the same in all.

        Raises:
            UnusableSetError: a set can't be used, or they don't hold the same samples.
            UserError: the split is empty, or the cache's settings don't suit.
        """
        cache = open_cache(self.root, self.cache_dir, self.cache_bytes)
        sets = [open_set(self.root, quality, cache) for quality in self.qualities]
        for opened in sets[1:]:
            check_same_samples(sets[0].shard_set, opened.shard_set)
        rows = require_rows(sets[0].shard_set, split)
        return {quality_name(opened.shard_set.manifest.quality): opened for opened in sets}, rows


def evaluate(place: str | Path, data: Data, out: Path, *, batch_size: int, measuring: Measuring) -> None:
    """Score a model on shard sets; write the metrics and, beside them, the predictions as Parquet.

    Args:
        place: As `open_model`.
        data: What is scored.
        out: The `.json` file of the metrics; of several qualities, `NAME-q60.json` and so on.
        batch_size: Samples of one forward pass.
        measuring: How.

    Raises:
        UserError: the model can't be loaded.
        ShardSetError: a shard set can't be used.
        FloatingPointError: a score is not finite.
    """
    sets, rows = data.open(measuring.split)
    scorer = open_scorer(str(place), batch_size)
    with start("fp32") as runtime:
        for quality, opened in sets.items():
            file = out if len(sets) == 1 else out.with_name(f"{out.stem}-{quality}.json")
            metrics = evaluate_cell(scorer, opened, rows, file.with_suffix(".parquet"), runtime, measuring)
            runtime.on_main(partial(_record, file, metrics, measuring))


def _record(file: Path, metrics: dict[str, float], measuring: Measuring) -> None:
    """Write the metrics of one set, and show the first of them."""
    write_atomic(file, json.dumps(_said(measuring) | jsonable(metrics), indent=2).encode() + b"\n")
    for name in SHOWN:
        print(_line(metrics, measuring.split, name))
    print(f"metrics in {file}, predictions in {file.with_suffix('.parquet')}")


def evaluate_matrix(
    places: Sequence[str], data: Data, out: Path, *, metric: str, batch_size: int, measuring: Measuring
) -> None:
    """Score several models on several qualities: trained at one, tested at each.

    Args:
        places: As `open_model`.
        data: What is scored.
        out: Folder of `matrix.parquet`, `matrix.csv`, `matrix.png` and the predictions.
        metric: Shown in the table and the heat map, such as "video/auc".
        batch_size: Samples of one forward pass.
        measuring: How.

    Raises:
        UserError: a model can't be loaded, or `metric` isn't among those that can be, or were, measured.
        ShardSetError: a shard set can't be used.
    """
    sets, rows = data.open(measuring.split)
    check_method(metric, next(iter(sets.values())).shard_set, rows)
    scorers = named_apart([open_scorer(place, batch_size) for place in places])
    with start("fp32") as runtime:
        fill_matrix(scorers, sets, rows, out, runtime, metric=metric, measuring=measuring)


def fill_matrix(
    scorers: Sequence[Scorer],
    sets: dict[str, OpenedSet],
    rows: np.ndarray,
    out: Path,
    runtime: Runtime,
    *,
    metric: str,
    measuring: Measuring,
) -> None:
    """Every scorer on every set, and the files and the table of it. Collective.

    A cell whose predictions are there already, of the same weights and data, is not scored again; so a matrix that was
    interrupted goes on by the same command. A model whose scores aren't finite is undefined there, with a warning.

    Args:
        scorers: The rows; no two of one name.
        sets: The columns, by name, all of the same samples.
        rows: int64 `[N]`, of the split.
        out, metric, measuring: As `evaluate_matrix`.
        runtime: This rank's surroundings.
    """
    assert len({scorer.name for scorer in scorers}) == len(scorers)
    cells = []
    for scorer in scorers:
        for quality, opened in sets.items():
            path = out / "predictions" / f"{_file_name(scorer.name)}-on-{quality}-{measuring.split}.parquet"
            try:
                metrics = evaluate_cell(scorer, opened, rows, path, runtime, measuring)
            except FloatingPointError as error:  # on every rank
                if runtime.is_main:
                    print(f"warning: {error}; its metrics are undefined", flush=True)
                metrics = runtime.on_main(partial(measuring.undefined, path, scorer))
            cells.append((scorer.name, scorer.trained_on, quality, metrics))
            if runtime.is_main:
                print(f"{scorer.name} on {quality}: {_line(metrics, measuring.split, 'auc')}", flush=True)
    table = matrix_table(cells, measuring.split, measuring.video_score)
    runtime.on_main(lambda: write_matrix(table, metric, out))


def named_apart(scorers: list[Scorer]) -> list[Scorer]:
    """Scorers of the same name get a number after it: a run called `b4` in two folders is `b4` and `b4-2`."""
    seen: dict[str, int] = {}
    for scorer in scorers:
        number = seen[scorer.name] = seen.get(scorer.name, 0) + 1
        if number > 1:
            scorer.name = f"{scorer.name}-{number}"
    if len({scorer.name for scorer in scorers}) < len(scorers):
        raise UserError(f"model: {', '.join(scorer.name for scorer in scorers)}: rename one of the folders of one name")
    return scorers


def _file_name(name: str) -> str:
    """Give every name a file name of its own: one that can't be a file's gets its digest."""
    plain = "".join(letter if letter.isalnum() or letter in "-_.@" else "-" for letter in name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _said(measuring: Measuring) -> dict[str, str | float | None]:
    """What the file of metrics says besides them: how videos were scored, where that isn't the mean."""
    return {} if measuring.video_score == MEAN else {VIDEO_SCORE: measuring.video_score}


def _line(metrics: dict[str, float], split: str, name: str) -> str:
    """`test/video/auc 0.9512 [0.9301, 0.9688]`."""
    full = metric_name(split, "video", name)
    return f"{full} {describe(metrics, full)}"
