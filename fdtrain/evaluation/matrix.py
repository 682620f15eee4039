"""The matrix of models and qualities, trained at one and tested at another: as Parquet, CSV, table and heat map."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from datasets_shards.schema import FAKE, ShardSet, write_atomic
from fdtrain.config import UserError
from fdtrain.metrics import HIGH, LEVELS, LOW, LOWER_IS_BETTER, MEAN, METRICS, VIDEO_SCORE, metric_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATRIX_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("trained_on", pa.string()),  # q77, raw, mixed, unknown
        ("tested_on", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),  # video/auc, frame/f1/Deepfakes
        ("value", pa.float64()),  # null where undefined
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)


class Grid(NamedTuple):
    """One metric of a matrix.

    Args:
        metric: Its name without the split.
        split: Of the samples.
        models: M names.
        trained_on: M names of qualities.
        tested_on: Q names of qualities.
        values: float64 `[M, Q, 3]`: value, low, high; NaN where undefined.
    """

    metric: str
    split: str
    models: list[str]
    trained_on: list[str]
    tested_on: list[str]
    values: np.ndarray

    @property
    def interval(self) -> str:
        """Return ", 95 % interval" where any cell has one, else nothing."""
        return "" if np.isnan(self.values[..., 1:]).all() else ", 95 % interval"


def matrix_table(
    cells: Iterable[tuple[str, str, str, dict[str, float]]], split: str, video_score: str = MEAN
) -> pa.Table:
    """Long form, `MATRIX_SCHEMA`, of cells (model, trained_on, tested_on, metrics as `compute_metrics`).

    Its metadata say how videos were scored (`VIDEO_SCORES`), where that isn't the mean.
    """
    records: list[tuple[object, ...]] = []
    for model, trained_on, tested_on, metrics in cells:
        for name, value in metrics.items():
            level, metric, *rest = name.split("/")[1:]
            if metric not in METRICS:
                continue  # an end of an interval
            method = rest[0] if rest else ""
            ends = [metrics.get(metric_name(split, level, metric, method, end), np.nan) for end in (LOW, HIGH)]
            what = "/".join([level, metric, *rest])
            records.append((model, trained_on, tested_on, split, what, value, *ends))
    arrays = [
        pa.array([record[place] for record in records], field.type, from_pandas=True)  # NaN becomes null
        for place, field in enumerate(MATRIX_SCHEMA)
    ]
    table = pa.table(arrays, schema=MATRIX_SCHEMA)
    return table if video_score == MEAN else table.replace_schema_metadata({f"fdtrain.{VIDEO_SCORE}": video_score})


def check_metric(metric: str) -> None:
    """Raise UserError where this can't be the name of a metric without its split."""
    level, _, name = metric.partition("/")
    if level not in LEVELS or name.partition("/")[0] not in METRICS:
        raise UserError(f"metric: {metric!r} is unknown; it is frame/NAME or video/NAME of {', '.join(METRICS)}")


def check_method(metric: str, shard_set: ShardSet, rows: np.ndarray) -> None:
    """Raise UserError where a metric is of a method, and these rows, int64 `[N]`, ascending, have no fakes of it."""
    _, _, *method = metric.split("/", 2)
    if not method:
        return
    fakes: set[str] = set()
    for piece in shard_set.index.pieces(rows, "method", "label"):
        fakes |= set(piece["method"].filter(pc.equal(piece["label"], FAKE)).unique().to_pylist())
    if method[0] not in fakes:
        known = f"there are {', '.join(sorted(fakes))}" if fakes else "there are none at all"
        raise UserError(f"metric: {metric!r}: the split has no fakes of {method[0]!r}; {known}")


def grid(table: pa.Table, metric: str) -> Grid:
    """One metric out of a matrix. Raises UserError where it isn't in it."""
    records = [record for record in table.to_pylist() if record["metric"] == metric]
    if not records:
        known = sorted(set(table["metric"].to_pylist()))
        raise UserError(f"metric: {metric!r} was not measured; there are {', '.join(known)}")
    trained = {record["model"]: record["trained_on"] for record in records}
    models, tested = list(trained), list(dict.fromkeys(record["tested_on"] for record in records))
    values = np.full((len(models), len(tested), 3), np.nan)
    for record in records:
        ends = [np.nan if record[key] is None else record[key] for key in ("value", "low", "high")]
        values[models.index(record["model"]), tested.index(record["tested_on"])] = ends
    return Grid(metric, records[0]["split"], models, list(trained.values()), tested, values)


def write_matrix(table: pa.Table, metric: str, out: Path) -> None:
    """Write `matrix.parquet`, `matrix.csv` and `matrix.png` into a folder, and print one metric as a table.

    Raises:
        UserError: `metric` is none of the matrix; Parquet and CSV are written by then.
    """
    from fdtrain.figures.panels import png

    parquet, text = pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.write_table(table, parquet)
    pa.csv.write_csv(table, text)
    write_atomic(out / "matrix.parquet", parquet.getvalue().to_pybytes())
    write_atomic(out / "matrix.csv", text.getvalue().to_pybytes())
    shown = grid(table, metric)
    write_atomic(out / "matrix.png", png(heat_map(shown)))
    print(as_text(shown))
    print(f"matrix.parquet, matrix.csv, matrix.png and predictions/ in {out}")


def as_text(shown: Grid) -> str:
    """A table for a terminal: rows are models, columns what they were tested on."""
    head = ["model", "trained on", *shown.tested_on]
    lines = [head]
    for model, trained_on, cells in zip(shown.models, shown.trained_on, shown.values, strict=True):
        lines.append([model, trained_on, *(_cell(cell, " ") for cell in cells)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([f"{shown.split}/{shown.metric}{shown.interval}, tested on:", *rows])


def heat_map(shown: Grid) -> "Figure":
    """Models down, what they were tested on across; a frame where that is what a model was trained on."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from fdtrain.figures.panels import HEAT

    rows, columns = shown.values.shape[:2]
    labels = [f"{model}\n(trained on {on})" for model, on in zip(shown.models, shown.trained_on, strict=True)]
    margin = 0.075 * max(max(len(line) for line in label.split("\n")) for label in labels)
    figure = Figure(figsize=(margin + 1.2 * columns + 1.6, 0.62 * rows + 1.7), layout="constrained")
    axes = figure.subplots()
    values = shown.values[..., 0]
    reverse = shown.metric.split("/")[1] in LOWER_IS_BETTER
    image = axes.imshow(values, cmap=f"{HEAT}_r" if reverse else HEAT, aspect="auto")
    axes.set_xticks(range(columns), shown.tested_on)
    axes.set_yticks(range(rows), labels, fontsize=8)
    axes.set_xlabel(f"tested on ({shown.split} split); framed: what the model was trained on", fontsize=9)
    axes.set_title(f"{shown.metric}{shown.interval}" + (" (lower is better)" if reverse else ""), fontsize=10)
    for row in range(rows):
        for column in range(columns):
            red, green, blue, opacity = image.to_rgba(values[row, column])
            dark = opacity > 0 and 0.299 * red + 0.587 * green + 0.114 * blue < 0.5  # an undefined cell is clear
            text = _cell(shown.values[row, column], "\n")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
            if shown.trained_on[row] == shown.tested_on[column]:
                frame = Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor="tab:red", linewidth=2)
                axes.add_patch(frame)
    figure.colorbar(image, ax=axes, shrink=0.9)
    return figure


def _cell(numbers: np.ndarray, between: str) -> str:
    value, low, high = numbers
    if np.isnan(value):
        return "undefined"
    return f"{value:.3f}" + ("" if np.isnan(low) else f"{between}[{low:.3f}, {high:.3f}]")
