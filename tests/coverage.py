"""How often 95 % intervals of the AUC hold the truth, where fakes of one pair have something in common."""

from collections.abc import Callable

import numpy as np

from fdtrain.metrics import Resampling
from fdtrain.metrics.bootstrap import LEVEL

PAIRS, METHODS = 70, 4

Interval = Callable[[float, np.ndarray, Resampling], tuple[float, float]]


def bca(value: float, values: np.ndarray, resampling: Resampling) -> tuple[float, float]:
    """What is published."""
    return resampling.interval(value, values)


def percentile(_: float, values: np.ndarray, resampling: Resampling) -> tuple[float, float]:
    """The plain quantiles of the draws."""
    low, high = np.quantile(values[: resampling.draws], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return low, high


def true_auc(shift: float, frames: int) -> float:
    """Of a video's mean over frames in `simulate`: fakes have variance 2 + 1 / frames, real videos 1 + 1 / frames."""
    from statistics import NormalDist

    return NormalDist().cdf(shift / (3 + 2 / frames) ** 0.5)


def simulate(rng: np.random.Generator, shift: float, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Real videos `[PAIRS, 2, frames]` and fakes `[PAIRS, 2 * METHODS, frames]`; all effects are N(0, 1)."""
    real = rng.normal(size=(PAIRS, 2, 1)) + rng.normal(size=(PAIRS, 2, frames))
    fake = shift + rng.normal(size=(PAIRS, 1, 1)) + rng.normal(size=(PAIRS, 2 * METHODS, 1))
    return real, fake + rng.normal(size=(PAIRS, 2 * METHODS, frames))


def coverage(
    rng: np.random.Generator, shift: float, repetitions: int, draws: int, frames: int, form: Interval = bca
) -> dict[str, float]:
    """Share of simulated test splits whose interval holds the true AUC, by what is resampled.

    Clusters and videos are judged by the AUC of videos, frames by that of frames.
    """
    hits = {"clusters": 0, "videos": 0, "frames": 0}
    truths = {"clusters": true_auc(shift, frames), "videos": true_auc(shift, frames), "frames": true_auc(shift, 1)}
    for _ in range(repetitions):
        real, fake = simulate(rng, shift, frames)
        videos = real.mean(2), fake.mean(2)
        pair_of = [np.repeat(np.arange(PAIRS), side.shape[1]) for side in videos]
        samples = {
            "clusters": (videos[0].ravel(), videos[1].ravel(), *pair_of),
            "videos": (videos[0].ravel(), videos[1].ravel(), *_apart(videos[0].size, videos[1].size)),
            "frames": (real.ravel(), fake.ravel(), *_apart(real.size, fake.size)),
        }
        for name, (reals, fakes, real_groups, fake_groups) in samples.items():
            groups = int(max(real_groups.max(), fake_groups.max())) + 1
            resampling = Resampling(groups, draws, seed=int(rng.integers(2**31)))
            wins = _wins(reals, fakes, real_groups, fake_groups, groups)
            values = _areas(wins, real_groups, fake_groups, resampling.weights.astype(np.float32))
            value = _areas(wins, real_groups, fake_groups, np.ones((1, groups), np.float32))[0]
            low, high = form(float(value), values.astype(float), resampling)
            hits[name] += low <= truths[name] <= high
    return {name: count / repetitions for name, count in hits.items()}


def _apart(reals: int, fakes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(reals), reals + np.arange(fakes)


def _wins(
    reals: np.ndarray, fakes: np.ndarray, real_groups: np.ndarray, fake_groups: np.ndarray, groups: int
) -> np.ndarray:
    """How many comparisons the fakes of one group win against the real ones of another: the AUC is quadratic in the
    weights, which is far quicker than its curve, and another way than the project's own."""
    higher = (fakes[:, None] > reals).astype(np.float32)
    by_fake = np.zeros((groups, len(reals)), np.float32)
    np.add.at(by_fake, fake_groups, higher)
    wins = np.zeros((groups, groups), np.float32)
    np.add.at(wins.T, real_groups, by_fake.T)
    return wins


def _areas(wins: np.ndarray, real_groups: np.ndarray, fake_groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    fakes, reals = (np.bincount(group, minlength=len(wins)) for group in (fake_groups, real_groups))
    return ((weights @ wins) * weights).sum(1) / ((weights @ fakes) * (weights @ reals))
