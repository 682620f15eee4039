"""The metrics of `fdtrain.metrics.binary` under many weightings of the same sample at once: what a bootstrap draws.

A weighting gives each cluster a whole number, how often it was drawn, and so each of its samples. Sorted once by score,
the ROC curve of a weighting is two cumulative sums; all weightings of a chunk are summed together. With all weights 1
the numbers are those of `binary_metrics`.
"""

import math

import numpy as np

from fdtrain.metrics.binary import ECE_BINS, EPSILON, LOW_FPR, MAX_FPR, calibration_bins
from fdtrain.metrics.names import METRICS, THRESHOLD

CHUNK_CELLS = 1 << 18
"""Weightings times samples that are looked at together: their arrays stay in the cache of a core."""


class WeightedMetrics:
    """One sample, and its metrics under any weights of its clusters.

    Args:
        labels: bool `[N]`, True = fake.
        scores: float64 `[N]`, in 0..1.
        clusters: int64 `[N]`, each of 0..C-1.
        cluster_count: C.
        threshold: As `binary_metrics`.
    """

    def __init__(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        clusters: np.ndarray,
        cluster_count: int,
        threshold: float = math.nan,
    ) -> None:
        order = np.argsort(-scores, kind="stable")
        descending = scores[order]
        starts = np.flatnonzero(np.concatenate([[True], descending[1:] != descending[:-1]])) if len(scores) else order
        self._clusters, self._fake = clusters[order], labels[order].astype(np.float64)
        self._starts = None if len(starts) == len(scores) else starts
        self._is_ranked = len(starts) > 1
        self._threshold = threshold
        self._sums = _cluster_sums(labels, scores, clusters, cluster_count, threshold)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> float64 `[D]`, NaN where undefined, under weights: whole numbers `[D, C]`."""
        size = max(1, CHUNK_CELLS // max(1, len(self._fake)))
        parts = []
        for first in range(0, max(1, len(weights)), size):
            chunk = weights[first : first + size].astype(np.float64)
            parts.append(self._additive(chunk) | self._ranking(chunk))
        return {name: np.concatenate([part[name] for part in parts]) for name in METRICS if name in parts[0]}

    def _additive(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Those that are functions of sums over the samples."""
        sums = weights @ self._sums
        fakes, reals, loss, square, *rest = sums.T
        gaps, counts = sums[:, 4 : 4 + ECE_BINS], rest[ECE_BINS:]
        total = _positive(fakes + reals)
        values = {"log_loss": loss / total, "brier": square / total, "ece": np.abs(gaps).sum(1) / total}
        for suffix, (hits, alarms) in zip(("", "_chosen"), (counts[:2], counts[2:]), strict=True):
            if suffix and math.isnan(self._threshold):
                continue
            values[f"acc{suffix}"] = (hits + reals - alarms) / total
            values[f"f1{suffix}"] = 2 * hits / _positive(fakes + hits + alarms)
            if not suffix:
                rates = hits / _positive(fakes) + (reals - alarms) / _positive(reals)
                values["balanced_acc"] = rates / 2
        return values

    def _ranking(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Those that only the order of the scores decides."""
        names = ("auc", "ap", "eer", "pauc10", "tpr_at_fpr1")
        if not self._is_ranked:
            return {name: np.full(len(weights), math.nan) for name in names}
        weight = weights[:, self._clusters]
        fake = weight * self._fake
        real = weight - fake
        if self._starts is not None:
            fake, real = (np.add.reduceat(values, self._starts, axis=1) for values in (fake, real))
        hits, alarms = fake.cumsum(1), real.cumsum(1)
        fakes, reals = _positive(hits[:, -1]), _positive(alarms[:, -1])
        defined = np.where(np.isnan(fakes + reals), math.nan, 1.0)
        areas = real * (hits - fake / 2)  # of the trapezoids below the ROC curve
        precision = hits / np.maximum(hits + alarms, 1)
        return {
            "auc": areas.sum(1) / (fakes * reals),
            "ap": np.einsum("dt,dt->d", fake, precision) / fakes * defined,
            "eer": _equal_error_rates(hits, alarms, fakes, reals),
            "pauc10": _partial_areas(hits, alarms, areas, fakes, reals),
            "tpr_at_fpr1": _value_before(hits, (alarms / reals[:, None] <= LOW_FPR).sum(1)) / fakes * defined,
        }


def _cluster_sums(
    labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray, count: int, threshold: float
) -> np.ndarray:
    """float64 `[C, 8 + ECE_BINS]`: fakes, reals, log loss, squares, gap of each bin, hits and false alarms."""
    clipped = np.clip(scores, EPSILON, 1 - EPSILON)
    loss = -np.log(np.where(labels, clipped, 1 - clipped))
    bins = clusters * ECE_BINS + calibration_bins(scores)
    gaps = np.bincount(bins, weights=labels - scores, minlength=count * ECE_BINS).reshape(count, ECE_BINS)
    columns = [labels, ~labels, loss, (scores - labels) ** 2]
    counts = [found & (scores >= at) for at in (THRESHOLD, threshold) for found in (labels, ~labels)]
    first, last = (
        np.stack([np.bincount(clusters, weights=column, minlength=count) for column in part], axis=1)
        for part in (columns, counts)
    )
    return np.concatenate([first, gaps, last], axis=1)


def _positive(counts: np.ndarray) -> np.ndarray:
    """The counts; NaN instead of none, which makes NaN of whatever is divided by it."""
    return np.where(counts > 0, counts, math.nan)


def _value_before(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`values[d, places[d] - 1]` for each d; 0 where the place is the first."""
    found = np.take_along_axis(values, np.maximum(places - 1, 0)[:, None], axis=1)[:, 0]
    return np.where(places > 0, found, 0.0)


def _value_at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, np.minimum(places, values.shape[1] - 1)[:, None], axis=1)[:, 0]


def _equal_error_rates(hits: np.ndarray, alarms: np.ndarray, fakes: np.ndarray, reals: np.ndarray) -> np.ndarray:
    """Where the lines between the points of the ROC curve meet FPR = 1 - TPR, `[D]`."""
    excess = hits / fakes[:, None] + alarms / reals[:, None]
    after = (excess < 1).sum(1)
    low, high = _value_before(excess, after) - 1, _value_at(excess, after) - 1
    first, last = _value_before(alarms, after), _value_at(alarms, after)
    with np.errstate(invalid="ignore"):
        return (first - low / (high - low) * (last - first)) / reals


def _partial_areas(
    hits: np.ndarray, alarms: np.ndarray, areas: np.ndarray, fakes: np.ndarray, reals: np.ndarray
) -> np.ndarray:
    """Area below the ROC curve up to `MAX_FPR`, with McClish's correction, `[D]`."""
    inside = alarms / reals[:, None] <= MAX_FPR
    stop = inside.sum(1)
    area = np.einsum("dt,dt->d", areas, inside) / (fakes * reals)
    before, after = _value_before(alarms, stop) / reals, _value_at(alarms, stop) / reals
    lower, upper = _value_before(hits, stop) / fakes, _value_at(hits, stop) / fakes
    with np.errstate(invalid="ignore"):
        end = lower + (MAX_FPR - before) / (after - before) * (upper - lower)
    area += (MAX_FPR - before) * (lower + end) / 2
    least = MAX_FPR**2 / 2
    return 0.5 * (1 + (area - least) / (MAX_FPR - least))
