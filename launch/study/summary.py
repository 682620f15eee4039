"""The numbers of a study for a terminal, and its record for the report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from launch.study.folder import StudyFolder
from launch.study.grid import SEED, Cell
from launch.study.settings import Study

COLUMNS = {"auc": "AUC", "balanced_acc": "bACC", "acc": "ACC", "f1": "F1"}
"""Metric -> heading. Balanced accuracy stands beside AUC: where fakes are four to one, "always fake" has ACC .8."""


def record_of(study: Study, cells: Sequence[Cell], folder: StudyFolder, reasons: Mapping[str, str]) -> dict[str, Any]:
    """What the report reads of the study: each cell, and why it is missing where it is."""
    return {
        "baseline": study.baseline,
        "seed": SEED,
        "cells": [
            {
                "name": cell.name,
                "run": str(folder.run(cell.name)),
                "place": cell.place,
                "missing": reasons.get(cell.name),
            }
            for cell in cells
        ],
    }


def table(cells: Sequence[Cell], folder: StudyFolder, reasons: Mapping[str, str]) -> str:
    """Return the test metrics of each cell, of frames and of videos, from its metrics.json."""
    width = max([len("cell"), *(len(cell.name) for cell in cells)])
    heads = " ".join(f"{head:>6}" for head in COLUMNS.values())
    lines = [
        f"{'test metrics'.ljust(width)}   {'frames'.ljust(len(heads))}      videos",
        f"{'cell'.ljust(width)}   {heads}      {heads}   (bACC: balanced accuracy)",
    ]
    for cell in cells:
        if cell.name in reasons:
            lines.append(f"{cell.name.ljust(width)}   missing: {reasons[cell.name]}")
            continue
        metrics = json.loads((folder.run(cell.name) / "metrics.json").read_bytes())
        frames, videos = (
            " ".join(_number(metrics.get(f"test/{level}/{name}")) for name in COLUMNS) for level in ("frame", "video")
        )
        lines.append(f"{cell.name.ljust(width)}   {frames}      {videos}")
    return "\n".join(lines)


def matrix_text(path: Path) -> str:
    """Return the AUC per video of a matrix.parquet, trained by tested."""
    from fdtrain.evaluation.matrix import as_text, grid  # its package imports torch, which planning doesn't need

    return as_text(grid(pq.read_table(path), "video/auc"))


def _number(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.3f}"
