"""Measure a sample of crops on every curve and keep the numbers."""

import csv
import io
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from datasets_shards.errors import InputError
from datasets_shards.fidelity.curves import Curve, qualities_of
from datasets_shards.fidelity.drawing import Crop
from datasets_shards.fidelity.measures import MEASURES, PERCENTILES, SSIM_WINDOW, Summary, summarize
from datasets_shards.pool import ordered_map

KINDS = ("mean", *(f"p{percentile}" for percentile in PERCENTILES))
CSV_HEAD = ("curve", "quality", "n", "identical", *(f"{measure}_{kind}" for measure in MEASURES for kind in KINDS))


@dataclass(frozen=True)
class Point:
    """A curve at one quality.

    Args:
        curve: which one.
        quality: 1 to 100.
        count: number of crops.
        identical: crops that came back exactly; their PSNR, and so the mean, is infinite.
        measures: each of `MEASURES` over the crops.
    """

    curve: Curve
    quality: int
    count: int
    identical: int
    measures: dict[str, Summary]


def measure_crops(
    crops: list[Crop],
    curves: list[Curve],
    qualities: list[int],
    workers: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Point]:
    """Every curve at every quality, over all crops; one crop at a time and core.

    Args:
        crops: uncompressed.
        curves: what to measure.
        qualities: 1 to 100, ascending.
        workers: number of processes; no number depends on it.
        progress: wraps the iterator over the finished crops, such as with a bar.

    Raises:
        InputError: a crop is smaller than SSIM's window.
    """
    for crop in crops:
        if min(crop.pixels.shape[:2]) < SSIM_WINDOW:
            height, width = crop.pixels.shape[:2]
            raise InputError(f"{crop.key}: {width}x{height} pixels; SSIM's window needs {SSIM_WINDOW} at least")
    places = [(curve, quality) for curve in curves for quality in qualities_of(curve, qualities)]
    with closing(ordered_map(_measure_crop, ((crop.pixels, places) for crop in crops), workers)) as results:
        values = np.stack(list(progress(results)))  # [crops, places, measures]
    return [
        Point(
            curve,
            quality,
            len(crops),
            int(np.isinf(values[:, i, 0]).sum()),
            {name: summarize(values[:, i, j]) for j, name in enumerate(MEASURES)},
        )
        for i, (curve, quality) in enumerate(places)
    ]


def _measure_crop(job: tuple[np.ndarray, list[tuple[Curve, int]]]) -> np.ndarray:
    pixels, places = job
    return np.array([astuple(curve.measure(pixels, quality)) for curve, quality in places])


def write_csv(points: list[Point]) -> str:
    """The report's CSV file: one row per curve and quality."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for point in points:
        numbers = [f"{value:.6g}" for name in MEASURES for value in astuple(point.measures[name])]
        writer.writerow([point.curve.name, point.quality, point.count, point.identical, *numbers])
    return text.getvalue()


def points_of(points: list[Point], curve: Curve) -> list[Point]:
    """The points of one curve, by quality."""
    return [point for point in points if point.curve == curve]
