"""95 % intervals by resampling clusters of videos, since frames of a video and fakes of a pair are not independent."""

import math
from statistics import NormalDist

import numpy as np

DRAWS = 1000
LEVEL = 0.95
MAX_LEFT_OUT = 200
"""Jackknife values at most; with more clusters several are left out together."""

MIN_CLUSTERS = 5
"""With fewer an interval is undefined: of C clusters even the widest that resampling can give, from the lowest cluster
to the highest, covers the mean of a symmetric distribution in 1 - 2 ** (1 - C) of all cases, which are 88 % of 4."""

MAX_CLUSTERS = 4096
"""Of more, several are drawn together, or the draws of a million independent pictures would fill the memory."""

MIN_DEFINED = 0.95
"""Share of the draws in which a metric must be defined; a draw may lack a class."""


class Resampling:
    """How often each cluster was drawn, by draw: the same draws for every metric, level and model.

    Args:
        clusters: C, their number; at most `MAX_CLUSTERS`.
        draws: B.
        seed: Of the draws.
    """

    def __init__(self, clusters: int, draws: int = DRAWS, seed: int = 0) -> None:
        self.clusters, self.draws = clusters, draws
        rng = np.random.default_rng(seed)
        drawn = np.zeros((draws, clusters), np.uint8)  # nothing is drawn 256 times: the mean is 1
        for row in drawn if clusters else ():
            row += np.bincount(rng.integers(clusters, size=clusters), minlength=clusters).astype(np.uint8)
        group = np.arange(clusters) % MAX_LEFT_OUT
        left_out = (group != np.arange(min(clusters, MAX_LEFT_OUT))[:, None]).astype(np.uint8)
        self.weights = np.concatenate([drawn, left_out])
        """uint8 `[B + J, C]`: the draws and, after them, the jackknife: everything but one part of the clusters."""

    def interval(self, value: float, values: np.ndarray, clusters: int | None = None) -> tuple[float, float]:
        """The ends of the 95 % interval.

        Args:
            value: The metric of the sample itself.
            values: float64 `[B + J]`, the metric under each of `weights`.
            clusters: Those that the metric rests on (`counted_clusters`), where they are fewer than all.

        Returns:
            NaN for both where the interval is undefined: the metric is, there are fewer than `MIN_CLUSTERS` clusters,
            too few draws have a value, or all of them have the same one, from which nothing follows.
        """
        draws, left_out = values[: self.draws], values[self.draws :]
        draws = draws[np.isfinite(draws)]
        clusters = self.clusters if clusters is None else clusters
        enough = clusters >= MIN_CLUSTERS and len(draws) >= max(1, MIN_DEFINED * self.draws)
        if math.isnan(value) or not enough or draws.min() == draws.max():
            return math.nan, math.nan
        return bca_interval(value, draws, left_out[np.isfinite(left_out)], clusters)


def counted_clusters(labels: np.ndarray, clusters: np.ndarray) -> int:
    """How many clusters an interval may count on: of the class, real or fake, that fewer of them have samples of.

    What compares the classes varies with the people of both, and is known as badly as that of fewer: with four real
    people beside a hundred fake ones, intervals by all 104 clusters held the true AUC in 81 % of 148 simulated splits.

    Args:
        labels: bool `[N]`, True = fake.
        clusters: Whole numbers `[N]`.
    """
    counts = [len(np.unique(clusters[labels == label])) for label in (False, True)]
    return min(counts) or max(counts)  # of one class alone there are its own


def bca_interval(value: float, draws: np.ndarray, left_out: np.ndarray, clusters: int) -> tuple[float, float]:
    """Bias-corrected and accelerated interval (Efron, JASA 1987), at the quantiles of Student's t.

    With few clusters the plain interval is too narrow, by sqrt((C - 1) / C) and by the normal quantiles that it rests
    on; the expansion is Hesterberg's (The American Statistician 2015, section 4).

    Args:
        value: Of the sample.
        draws: float `[B]`, of resampled clusters.
        left_out: float `[J]`, of the sample without one part of the clusters.
        clusters: C.
    """
    from scipy.special import stdtrit

    normal = NormalDist()
    tied = np.isclose(draws, value, rtol=0, atol=1e-12)  # they come by another order of additions
    below = (np.sum((draws < value) & ~tied) + np.sum(tied) / 2) / len(draws)
    shift = normal.inv_cdf(float(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws))))
    offsets = left_out.mean() - left_out
    spread = float(np.sum(offsets**2))
    skew = float(np.sum(offsets**3)) / (6 * spread**1.5) if spread else 0.0
    reach = math.sqrt(clusters / (clusters - 1)) * float(stdtrit(clusters - 1, (1 + LEVEL) / 2))
    quantiles = []
    for z in (shift - reach, shift + reach):
        quantiles.append(normal.cdf(shift + z / (1 - skew * z)) if skew * z < 1 else float(z > 0))
    low, high = np.quantile(draws, quantiles)
    return float(low), float(high)
