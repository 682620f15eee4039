"""The numbers of a study for a terminal, and its record for the report."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from launch.study.folder import StudyFolder
from launch.study.grid import SEED, Cell
from launch.study.settings import Study

NAMES = ("auc", "acc", "f1")


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
    """Test AUC, ACC and F1 of each cell, of frames and of videos, from its metrics.json."""
    width = max([len("cell"), *(len(cell.name) for cell in cells)])
    lines = [
        f"{'test metrics'.ljust(width)}     frames                    videos",
        f"{'cell'.ljust(width)}      AUC    ACC     F1         AUC    ACC     F1",
    ]
    for cell in cells:
        if cell.name in reasons:
            lines.append(f"{cell.name.ljust(width)}   missing: {reasons[cell.name]}")
            continue
        metrics = json.loads((folder.run(cell.name) / "metrics.json").read_bytes())
        frames, videos = (
            " ".join(_number(metrics.get(f"test/{level}/{name}")) for name in NAMES) for level in ("frame", "video")
        )
        lines.append(f"{cell.name.ljust(width)}   {frames}      {videos}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.3f}"
