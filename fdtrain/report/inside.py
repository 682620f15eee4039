"""What the models look at: t-SNE, attention maps and Grad-CAM, as `fdtrain figures` draws them for a run."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.page import Picture
from datasets_shards.schema import ShardSetError, quality_name
from fdtrain.config import UserError
from fdtrain.figures import DEFAULT_POINTS, DEFAULT_SAMPLES
from fdtrain.figures.panels import DPI
from fdtrain.figures.write import ATTENTION, GRADCAM, POINTS, RECORD, TSNE, Request, write_figures
from fdtrain.report.content import Heading, Missing, Part, Section
from fdtrain.report.runs import Run

FIGURES = Path("report", "figures")
SPLIT = "val"
"""Figures are for looking and choosing, for which the test split is not."""


@dataclass(frozen=True)
class Drawing:
    """How much is drawn of a run that has no such figures of its best model yet.

    Args:
        wanted: Whether anything is.
        samples: Faces in attention maps and Grad-CAM; None takes the figures that are there as they are.
        points: Samples in the t-SNE at most; None likewise.
        batch_size: Samples of one forward pass.
    """

    wanted: bool = True
    samples: int | None = None
    points: int | None = None
    batch_size: int = 32


def inside_section(runs: Sequence[Run], drawing: Drawing) -> Section:
    """The figures of each run, drawn where they are not there."""
    parts: list[Part] = [
        "Of the validation split: its penultimate features by t-SNE, the attention maps of a network that has them, "
        "and Grad-CAM (Selvaraju et al., ICCV 2017)."
    ]
    for run in runs:
        parts += [Heading(run.label), *_parts(run, drawing)]
    return Section("inside", "What the models look at", parts)


def _parts(run: Run, drawing: Drawing) -> list[Part]:
    folder = run.path / FIGURES
    record = _record(folder, run, drawing)
    if record is None:
        if problem := _draw(run, folder, drawing):
            return [problem]
        record = _record(folder, run, drawing)
        assert record is not None, "the figures that were drawn are those that were asked for"
    drawn = record["figures"]
    parts: list[Part] = []
    what = f"{run.label}, {record['data']['quality']}, {record['data']['split']}"
    for file, tell in ((TSNE, _tell_tsne), (ATTENTION, _tell_faces), (GRADCAM, _tell_faces)):
        path = folder / file
        if file not in drawn or not path.is_file():
            parts.append(Missing(_no_figure(run, file, path)))
            continue
        stem, suffix = file.split(".")
        title, alt = tell(file, drawn[file], folder)
        parts.append(Picture(f"{stem}-{run.letter}.{suffix}", path.read_bytes(), f"{what}: {title}", alt, DPI))
    return parts


def _record(folder: Path, run: Run, drawing: Drawing) -> dict[str, Any] | None:
    """What stands in the folder, where it is of the run's best model, its own validation split, and as asked for."""
    asked = {"samples": drawing.samples, "points": drawing.points}
    try:
        record = json.loads((folder / RECORD).read_bytes())
        data = (record["data"]["quality"], record["data"]["split"])
        fits = (
            record["model"]["results"] == run.card.get("results")
            and data == (quality_name(run.quality), SPLIT)
            and all(value is None or record.get(name) == value for name, value in asked.items())
        )
        return record if fits and isinstance(record["figures"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _draw(run: Run, folder: Path, drawing: Drawing) -> Missing | None:
    """Draw the figures; why not, where that can't be done."""
    if not drawing.wanted:
        return Missing(
            f"{run.letter}: its {folder} has no figures of its best model on its own validation split, and "
            "--no_figures draws none"
        )
    if not run.card:
        return Missing(f"{run.letter}: has no best model yet, so there is nothing to look into")
    if isinstance(run.data, Missing):
        return run.data
    request = Request(
        model=str(run.path),
        root=run.config["data.root"],
        cache_dir=run.config.get("data.cache_dir"),
        cache_bytes=run.config["data.cache_bytes"],
        quality=run.quality,
        split=SPLIT,
        samples=DEFAULT_SAMPLES if drawing.samples is None else drawing.samples,
        points=DEFAULT_POINTS if drawing.points is None else drawing.points,
        batch_size=drawing.batch_size,
        seed=0,
    )
    try:
        write_figures(request, folder)
    except (ShardSetError, UserError, FloatingPointError) as error:
        return Missing(f"{run.letter}: its figures can't be drawn: {error}")
    return None


def _no_figure(run: Run, file: str, path: Path) -> str:
    if file == ATTENTION and run.config["model.name"] != "multi_attention":
        return f"{run.letter}: {run.config['model.name']} has no attention maps, multi_attention alone has"
    return f"{run.letter}: {path} is gone; delete {path.parent} and it is drawn again"


def _tell_faces(file: str, facts: dict[str, Any], folder: Path) -> tuple[str, str]:
    samples = facts["samples"]
    told = "; ".join(f"{face['key']} {'fake' if face['label'] else 'real'} {face['score']:.2f}" for face in samples)
    if file == ATTENTION:
        title, what = "attention maps over faces", "each with the attention maps of the network over it"
    else:
        title = "Grad-CAM, what speaks for fake rather than real"
        what = "each with its Grad-CAM below"
    return f"{title}.", f"{len(samples)} faces, {what}. Sample, truth and P(fake): {told}."


def _tell_tsne(file: str, facts: dict[str, Any], folder: Path) -> tuple[str, str]:
    title = "t-SNE of the penultimate features."
    what = f"Scatter plot of {facts['points']} samples by t-SNE of their {facts['features']} penultimate features"
    share = neighbour_share(folder / POINTS)
    return (
        title,
        f"{what}. The nearest neighbour of {share:.0%} of them in the plane is of the same class, real or fake.",
    )


def neighbour_share(table: Path) -> float:
    """Of the points in a `tsne.csv`, the share whose nearest neighbour has their label."""
    from scipy.spatial import cKDTree

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    places = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    labels = np.array([row["label"] for row in rows])
    nearest = cKDTree(places).query(places, k=2)[1][:, 1]
    return float((labels == labels[nearest]).mean())
