"""The metrics of `fdtrain.metrics.binary` under many weightings of the same sample at once: what a bootstrap draws.

A weighting gives each cluster a whole number, how often it was drawn, and so each of its samples. With all weights 1
the numbers are those of `binary_metrics`.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from fdtrain.metrics.binary import ECE_BINS, EPSILON, LOW_FPR, MAX_FPR, calibration_bins
from fdtrain.metrics.names import METRICS, THRESHOLD

RANKING = ("auc", "ap", "eer", "pauc10", "tpr_at_fpr1")
"""Those that only the order of the scores decides."""

CHUNK_CELLS = 1 << 22
"""Weightings times clusters that are looked at together."""

CACHED_CELLS = 1 << 15
"""Weightings times samples that are looked at together: what a core's cache holds."""


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
        self._roc = _Roc(labels, scores, clusters)
        self._threshold = threshold
        self._sums = _cluster_sums(labels, scores, clusters, cluster_count, threshold)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> float64 `[D]`, NaN where undefined, under weights: whole numbers `[D, C]`."""
        size = max(1, CHUNK_CELLS // max(1, weights.shape[1]))
        chunks = [weights[first : first + size] for first in range(0, max(1, len(weights)), size)]
        parts = [self._additive(chunk.astype(np.float64)) | self._roc(chunk) for chunk in chunks]
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


class _Roc:
    """The ROC curve of one sample, and what only the order of the scores decides, under any weights of its clusters.

    Fakes and reals are kept apart, each from the highest score down, so that a weighting costs one cumulative sum over
    either. The curve has T + 1 points, from the origin to where each of the T scores is the threshold; a point is two
    places in those sums.

    Args:
        labels: bool `[N]`, True = fake; F of them.
        scores: float64 `[N]`.
        clusters: int64 `[N]`.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray) -> None:
        order = np.argsort(-scores, kind="stable")
        is_fake, ascending = labels[order], -scores[order]
        fakes, reals = ascending[is_fake], ascending[~is_fake]
        self._fake_clusters, self._real_clusters = clusters[order][is_fake], clusters[order][~is_fake]
        points = np.unique(ascending)
        self._is_tied = len(points) < len(scores)
        self._fakes_at, self._reals_at = (
            np.append(0, np.searchsorted(part, points, side="right")) for part in (fakes, reals)
        )
        # Of each fake, how many fakes and reals have its score or a higher one; of each real, how many fakes.
        self._fakes_to_fake, self._reals_to_fake = (
            np.searchsorted(part, fakes, side="right") for part in (fakes, reals)
        )
        self._fakes_above_real, self._fakes_to_real = (
            np.searchsorted(fakes, reals, side=side) for side in ("left", "right")
        )

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of `RANKING`, float64 `[D]` each, NaN where undefined, under weights: whole numbers `[D, C]`."""
        size = max(1, CACHED_CELLS // max(1, len(self._fake_clusters) + len(self._real_clusters)))
        chunks = [weights[first : first + size] for first in range(0, len(weights), size)]
        rows = [row for chunk in chunks for row in self._metrics(chunk.astype(np.int32))]
        return dict(zip(RANKING, np.array(rows).reshape(-1, len(RANKING)).T, strict=True))

    def _metrics(self, weights: np.ndarray) -> Iterator[tuple[float, ...]]:
        """Those of one weighting after the other."""
        # Whole numbers: numpy sums them up faster than floats, whose order of addition it has to keep.
        fake, real = weights.take(self._fake_clusters, axis=1), weights.take(self._real_clusters, axis=1)
        hits, alarms = _from_zero(fake), _from_zero(real)

        found = hits.take(self._fakes_to_fake, axis=1) if self._is_tied else hits[:, 1:]
        called = alarms.take(self._reals_to_fake, axis=1)
        called += found
        np.maximum(called, 1, out=called)  # above the first fake that was drawn, where nothing is counted
        precision = found / called
        precision *= fake
        # Twice the trapezoids below the curve, in samples squared: fakes tied with a real one count half.
        areas = hits.take(self._fakes_above_real, axis=1).astype(np.int64)
        areas += hits.take(self._fakes_to_real, axis=1) if self._is_tied else areas
        areas *= real
        for row, (whole, exact) in enumerate(zip(areas.sum(1).tolist(), precision.sum(1).tolist(), strict=True)):
            curve = _Curve(hits[row], alarms[row], self._fakes_at, self._reals_at)
            if curve.fakes == 0 or curve.reals == 0 or len(self._fakes_at) == 2:
                yield (math.nan,) * len(RANKING)
                continue
            auc, ap = whole / (2 * curve.fakes * curve.reals), exact / curve.fakes
            yield auc, ap, curve.equal_error_rate(), curve.partial_area(areas[row]), curve.tpr(LOW_FPR)


class _Curve:
    """One ROC curve, of T + 1 points.

    Args:
        hits: Whole numbers `[F + 1]`: how many there are of the first 0, 1, .. F fakes from the highest score down.
        alarms: `[R + 1]`, of the real ones.
        fakes_at: `[T + 1]`, a place in `hits` for each point.
        reals_at: `[T + 1]`, a place in `alarms` for each point.
    """

    def __init__(self, hits: np.ndarray, alarms: np.ndarray, fakes_at: np.ndarray, reals_at: np.ndarray) -> None:
        self._hits, self._alarms, self._fakes_at, self._reals_at = hits, alarms, fakes_at, reals_at
        self.fakes, self.reals = hits.item(-1), alarms.item(-1)

    def _point(self, place: int) -> tuple[int, int]:
        """Fakes found, and false alarms."""
        return self._hits.item(self._fakes_at.item(place)), self._alarms.item(self._reals_at.item(place))

    def _last_within(self, fpr: float) -> int:
        """The last point whose false positive rate is not above `fpr`."""
        most = math.floor(fpr * self.reals + 1e-9)
        reals = self._alarms.searchsorted(most, side="right") - 1
        return int(self._reals_at.searchsorted(reals, side="right")) - 1

    def tpr(self, fpr: float) -> float:
        """The highest true positive rate at a false positive rate not above `fpr`."""
        return self._point(self._last_within(fpr))[0] / self.fakes

    def equal_error_rate(self) -> float:
        """Where the lines between the points meet FPR = 1 - TPR."""
        fakes, reals, pairs = self.fakes, self.reals, self.fakes * self.reals
        hits, alarms, fakes_at, reals_at = self._hits.item, self._alarms.item, self._fakes_at.item, self._reals_at.item

        def excess(place: int) -> int:
            """TPR + FPR - 1 in pairs of a fake and a real sample, whole; a call less than by `_point`."""
            return hits(fakes_at(place)) * reals + alarms(reals_at(place)) * fakes - pairs

        after = bisect_left(range(len(self._fakes_at)), 0, key=excess)  # not the origin, where it is negative
        low, high = excess(after - 1), excess(after)
        before, last = self._point(after - 1)[1], self._point(after)[1]
        return (before - low / (high - low) * (last - before)) / self.reals

    def partial_area(self, areas: np.ndarray) -> float:
        """Below the curve up to `MAX_FPR`, with McClish's correction.

        Args:
            areas: int64 `[R]`, twice what each real sample adds, in samples squared.
        """
        last = self._last_within(MAX_FPR)
        (lower, before), (higher, after) = self._point(last), self._point(last + 1)
        rest = max(0.0, MAX_FPR * self.reals - before)
        end = lower + rest / (after - before) * (higher - lower)
        whole = int(areas[: self._reals_at.item(last)].sum())
        area = (whole + rest * (lower + end)) / (2 * self.fakes * self.reals)
        least = MAX_FPR**2 / 2
        return 0.5 * (1 + (area - least) / (MAX_FPR - least))


def _from_zero(weights: np.ndarray) -> np.ndarray:
    """int64 `[D, N]` -> `[D, N + 1]`: the sum of all before each place."""
    sums = np.empty((len(weights), weights.shape[1] + 1), weights.dtype)
    sums[:, 0] = 0
    weights.cumsum(axis=1, dtype=weights.dtype, out=sums[:, 1:])
    return sums


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
