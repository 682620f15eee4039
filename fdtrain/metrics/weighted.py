"""The metrics of `fdtrain.metrics.binary` under many weightings of the same sample at once: what a bootstrap draws.

A weighting gives each cluster a whole number, how often it was drawn, and so each of its samples. Sorted once by score,
the ROC curve of a weighting is two cumulative sums, in buffers that stay in a core's cache from one to the next. With
all weights 1 the numbers are those of `binary_metrics`.
"""

import math
from bisect import bisect_left

import numpy as np

from fdtrain.metrics.binary import ECE_BINS, EPSILON, LOW_FPR, MAX_FPR, calibration_bins
from fdtrain.metrics.names import METRICS, THRESHOLD

RANKING = ("auc", "ap", "eer", "pauc10", "tpr_at_fpr1")
"""Those that only the order of the scores decides."""

CHUNK_CELLS = 1 << 22
"""Weightings times clusters that are looked at together."""


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
        self._clusters, self._fake = clusters[order], labels[order].astype(np.int64)
        # The last one of each run of equal scores; None where no two are equal.
        self._ends = None if len(starts) == len(scores) else np.append(starts[1:], len(scores)) - 1
        self._is_ranked = len(starts) > 1
        # Whole numbers: numpy sums them up three times as fast as floats, whose order of addition it has to keep.
        self._counts = [np.empty(len(at), np.int64) for at in (scores, scores, starts, starts)]
        self._precision = np.empty(len(starts))
        self._threshold = threshold
        self._sums = _cluster_sums(labels, scores, clusters, cluster_count, threshold)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> float64 `[D]`, NaN where undefined, under weights: whole numbers `[D, C]`."""
        size = max(1, CHUNK_CELLS // max(1, weights.shape[1]))
        parts = []
        for first in range(0, max(1, len(weights)), size):
            chunk = weights[first : first + size]
            ranking = np.array([self._ranking(row.astype(np.int64)) for row in chunk]).reshape(-1, len(RANKING))
            parts.append(self._additive(chunk.astype(np.float64)) | dict(zip(RANKING, ranking.T, strict=True)))
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

    def _ranking(self, weights: np.ndarray) -> tuple[float, ...]:
        """Those of `RANKING`, under one weighting `[C]`."""
        undefined = (math.nan,) * len(RANKING)
        if not self._is_ranked:
            return undefined
        (weight, fake, hits, alarms), precision = self._counts, self._precision
        np.take(weights, self._clusters, out=weight, mode="clip")  # nothing is clipped; other modes copy
        np.multiply(weight, self._fake, out=fake)
        if self._ends is None:
            np.cumsum(fake, out=hits)
            np.cumsum(weight, out=alarms)
        else:
            np.take(fake.cumsum(), self._ends, out=hits, mode="clip")
            np.take(weight.cumsum(), self._ends, out=alarms, mode="clip")
            fake, weight = np.diff(hits, prepend=0), np.diff(alarms, prepend=0)
        np.divide(hits, np.maximum(alarms, 1, out=precision), out=precision)
        alarms -= hits
        fakes, reals = float(hits[-1]), float(alarms[-1])
        if fakes == 0 or reals == 0:
            return undefined
        real = np.subtract(weight, fake, out=weight)
        low = int(np.searchsorted(alarms, _most(LOW_FPR, reals), side="right"))
        return (
            _area(real, fake, hits) / (fakes * reals),
            _dot(fake, precision) / fakes,
            _equal_error_rate(hits, alarms),
            _partial_area(real, fake, hits, alarms),
            float(hits[low - 1]) / fakes if low else 0.0,
        )


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


def _most(fpr: float, reals: float) -> int:
    """The most false alarms, a whole number, that make no higher rate than `fpr`."""
    return math.floor(fpr * reals + 1e-9)


def _area(real: np.ndarray, fake: np.ndarray, hits: np.ndarray) -> float:
    """Below the ROC curve, in samples squared: trapezoids, in which real ones tied with fakes count half."""
    return _dot(real, hits) - _dot(real, fake) / 2


def _dot(first: np.ndarray, second: np.ndarray) -> float:
    # BLAS would share such short vectors out to threads, and wait for them far longer than the sum takes.
    return float(np.einsum("t,t->", first, second))


def _equal_error_rate(hits: np.ndarray, alarms: np.ndarray) -> float:
    """Where the lines between the points of the ROC curve `[T]` meet FPR = 1 - TPR."""
    fakes, reals = hits[-1], alarms[-1]

    def excess(place: int) -> float:
        return float(hits[place] / fakes + alarms[place] / reals - 1) if place >= 0 else -1.0

    after = bisect_left(range(len(hits)), 0.0, key=excess)
    before, last = (alarms[after - 1] if after else 0.0), alarms[after]
    share = -excess(after - 1) / (excess(after) - excess(after - 1))
    return float((before + share * (last - before)) / reals)


def _partial_area(real: np.ndarray, fake: np.ndarray, hits: np.ndarray, alarms: np.ndarray) -> float:
    """Below the ROC curve up to `MAX_FPR`, with McClish's correction; `real` and `fake` are its steps `[T]`."""
    fakes, reals = hits[-1], alarms[-1]
    stop = int(np.searchsorted(alarms, _most(MAX_FPR, reals), side="right"))
    before, lower = (alarms[stop - 1], hits[stop - 1]) if stop else (0.0, 0.0)
    rest = max(0.0, MAX_FPR * reals - before)
    end = lower + rest / (alarms[stop] - before) * (hits[stop] - lower)
    area = (_area(real[:stop], fake[:stop], hits[:stop]) + rest * (lower + end) / 2) / (fakes * reals)
    least = MAX_FPR**2 / 2
    return float(0.5 * (1 + (area - least) / (MAX_FPR - least)))
