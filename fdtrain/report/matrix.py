"""The quality matrix that `evaluate --matrix` wrote: trained at one quality, tested at another."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fdtrain.config import UserError
from fdtrain.report.content import Block, Cell, Estimate, Missing, Row, Table

MATRIX = "matrix.parquet"
COLUMNS = ("model", "trained_on", "tested_on", "split", "metric", "value", "low", "high")
METRIC = "video/auc"
HOW = "run evaluate --matrix, and give its matrix.parquet with --matrix, or its folder among the runs"


@dataclass(frozen=True)
class Matrix:
    """The values of one model, split and metric.

    Args:
        model: Its name.
        split: Of the data.
        metric: Such as `video/auc`.
        trained: Names of the rows, such as q77; best quality first.
        tested: Of the columns.
        values: By (trained, tested); None where it is undefined, absent where it wasn't measured.
    """

    model: str
    split: str
    metric: str
    trained: list[str]
    tested: list[str]
    values: dict[tuple[str, str], Estimate | None]

    def cell(self, trained: str, tested: str) -> Cell:
        """What stands there."""
        value = self.values.get((trained, tested))
        if value is not None:
            return value
        said = "is undefined" if (trained, tested) in self.values else "was not measured"
        return Missing(f"{self.model}: trained on {trained}, tested on {tested} {said}")


def read_matrices(file: Path) -> list[Matrix]:
    """Of each model and split, by AUC per video where that is in the file, else by its first metric.

    Raises:
        UserError: the file isn't a matrix.
    """
    try:
        table = pq.read_table(file, columns=list(COLUMNS))
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"matrix: {file} is no matrix.parquet of evaluate --matrix ({reason}); name another") from None
    if absent := [name for name in COLUMNS if name not in table.column_names]:
        raise UserError(f"matrix: {file} has no column {absent[0]!r}, so evaluate --matrix didn't write it")
    rows = table.to_pylist()
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    if not metrics:
        raise UserError(f"matrix: {file} is empty; run evaluate --matrix again")
    metric = METRIC if METRIC in metrics else metrics[0]
    matrices = []
    for model, split in dict.fromkeys((row["model"], row["split"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["split"], row["metric"]) == (model, split, metric)]
        trained, tested = (sorted({row[side] for row in mine}, key=_order) for side in ("trained_on", "tested_on"))
        values = {(row["trained_on"], row["tested_on"]): _estimate(row) for row in mine}
        matrices.append(Matrix(model, split, metric, trained, tested, values))
    return matrices


def _order(quality: str) -> tuple[int, int, str]:
    """The raw set first, then from the best quality down, then what is no single quality."""
    number = quality.removeprefix("q")
    if quality == "raw":
        return 0, 0, quality
    return (1, -int(number), quality) if number.isdigit() else (2, 0, quality)


def _estimate(row: dict) -> Estimate | None:
    value, low, high = (
        None if row[name] is None or row[name] != row[name] else float(row[name]) for name in ("value", "low", "high")
    )
    return None if value is None else Estimate(value, low, high)


def matrix_table(matrices: Sequence[Matrix]) -> Table:
    """All of them, each a block. Columns are the qualities that any of them was tested on."""
    tested = sorted({name for matrix in matrices for name in matrix.tested}, key=_order)
    blocks = [
        Block(
            f"{matrix.model}, {matrix.split}, {matrix.metric}",
            [Row(name, [matrix.cell(name, other) for other in tested]) for name in matrix.trained],
        )
        for matrix in matrices
    ]
    return Table(
        "matrix.csv", "Rows: trained on; columns: tested on; with 95 % intervals.", ["trained on", *tested], blocks
    )
