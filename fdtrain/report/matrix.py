"""The quality matrix that `evaluate --matrix` wrote: trained at one quality, tested at another."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_shards.page import Picture
from fdtrain.config import UserError
from fdtrain.evaluation.matrix import MATRIX_SCHEMA, Grid, grid, heat_map
from fdtrain.report.content import Block, Cell, Estimate, Missing, Row, Section, Table
from fdtrain.report.drawing import listing, picture

MATRIX = "matrix.parquet"
METRIC = "video/auc"
HOW = "run evaluate --matrix, and give its matrix.parquet by --matrix, or its folder among the runs"


def matrix_section(files: Sequence[Path]) -> Section:
    """The matrix of each file, as heat map and as table. Raises UserError where one isn't a matrix."""
    section = Section("matrix", "Quality matrix")
    if not files:
        section.parts.append(Missing(f"No matrix was given; {HOW}"))
        return section
    section.parts.append(
        "Models down, with the quality that they were trained on; what they were tested on across. A frame is round "
        "the cells of models that were tested on what they were trained on."
    )
    for number, file in enumerate(files, 1):
        shown = read_matrix(file)
        section.parts.extend([_heat_map(number, shown), _table(number, shown)])
    return section


def read_matrix(file: Path) -> Grid:
    """AUC per video out of a file. Raises UserError where it isn't a matrix, or hasn't it."""
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"matrix: {file} can't be read ({reason}); name a {MATRIX} of evaluate --matrix") from None
    if absent := [name for name in MATRIX_SCHEMA.names if name not in table.column_names]:
        raise UserError(f"matrix: {file} has no column {absent[0]!r}; name a {MATRIX} of evaluate --matrix")
    try:
        return grid(table, METRIC)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _heat_map(number: int, shown: Grid) -> Picture:
    what = f"{shown.metric} on the {shown.split} split"
    return picture(f"matrix-{number}.png", heat_map(shown), f"{what}{shown.interval}.", _alt(what, shown))


def _table(number: int, shown: Grid) -> Table:
    rows = [
        Row(
            model,
            [trained_on, *(_cell(model, tested_on, *of) for tested_on, of in zip(shown.tested_on, cells, strict=True))],
        )
        for model, trained_on, cells in zip(shown.models, shown.trained_on, shown.values, strict=True)
    ]
    caption = f"{shown.metric} on the {shown.split} split with 95 % intervals where they are known, by what it was of."
    return Table(f"matrix-{number}.csv", caption, ["model", "trained on", *shown.tested_on], [Block("", rows)])


def _cell(model: str, tested_on: str, value: float, low: float, high: float) -> Cell:
    if np.isnan(value):
        return Missing(f"{model} on {tested_on}: undefined, or not measured")
    return Estimate(value) if np.isnan(low) or np.isnan(high) else Estimate(value, low, high)


def _alt(what: str, shown: Grid) -> str:
    places = [
        (float(shown.values[i, j, 0]), model, trained_on, tested_on)
        for i, (model, trained_on) in enumerate(zip(shown.models, shown.trained_on, strict=True))
        for j, tested_on in enumerate(shown.tested_on)
        if not np.isnan(shown.values[i, j, 0])
    ]
    if not places:
        return f"Heat map of {what}: no value is defined."
    told = []
    for words, same in (("tested on what it was trained on", True), ("tested on something else", False)):
        chosen = [value for value, _, trained_on, tested_on in places if (trained_on == tested_on) is same]
        if chosen:
            told.append(f"mean {np.mean(chosen):.3f} {words}")
    for word, (value, model, trained_on, tested_on) in (("lowest", min(places)), ("highest", max(places))):
        told.append(f"{word} {value:.3f}, {model} trained on {trained_on} and tested on {tested_on}")
    return f"Heat map of {what}, {len(shown.models)} models by {len(shown.tested_on)} qualities: {listing(told)}."
