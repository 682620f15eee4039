"""How often 95 % intervals of the AUC hold the truth, where fakes of one pair have something in common."""

import numpy as np

from fdtrain.metrics import Resampling
from fdtrain.metrics.bootstrap import LEVEL

PAIRS, METHODS = 70, 4


def percentile(values: np.ndarray, resampling: Resampling) -> tuple[float, float]:
    """The plain quantiles of the draws."""
    low, high = np.quantile(values[: resampling.draws], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return low, high


def true_auc(shift: float, frames: int) -> float:
    """Of a video's mean over frames in `simulate`: fakes have variance 2 + 1 / frames, real videos 1 + 1 / frames."""
    from statistics import NormalDist

    return NormalDist().cdf(shift / (3 + 2 / frames) ** 0.5)


def simulate(rng: np.random.Generator, shift: float, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Real videos `[PAIRS, 2, frames]` and fakes `[PAIRS, 2 * METHODS, frames]`.

    All effects are N(0, 1): of a video, of a frame and, of the fakes alone, of the pair.
    """
    real = rng.normal(size=(PAIRS, 2, 1)) + rng.normal(size=(PAIRS, 2, frames))
    fake = shift + rng.normal(size=(PAIRS, 1, 1)) + rng.normal(size=(PAIRS, 2 * METHODS, 1))
    return real, fake + rng.normal(size=(PAIRS, 2 * METHODS, frames))


def coverage(rng: np.random.Generator, shift: float, repetitions: int, draws: int, frames: int) -> dict[str, float]:
    """Share of simulated test splits whose interval holds the true AUC.

    Returns:
        "published": the project's intervals; "clusters", "videos", "frames": plain quantiles of such resampled.
        Frames are judged by the AUC of frames, all others by that of videos.
    """
    hits = dict.fromkeys(("published", "clusters", "videos", "frames"), 0)
    truth, truth_of_frames = true_auc(shift, frames), true_auc(shift, 1)
    for _ in range(repetitions):
        real, fake = simulate(rng, shift, frames)
        videos = real.mean(2).ravel(), fake.mean(2).ravel()
        pairs = np.repeat(np.arange(PAIRS), 2), np.repeat(np.arange(PAIRS), 2 * METHODS)
        value, values, resampling = _resampled(*videos, *pairs, draws, rng)
        for name, (low, high) in (
            ("published", resampling.interval(value, values)),
            ("clusters", percentile(values, resampling)),
            ("videos", percentile(*_resampled(*videos, *_apart(*videos), draws, rng)[1:])),
        ):
            hits[name] += low <= truth <= high
        single = real.ravel(), fake.ravel()
        low, high = percentile(*_resampled(*single, *_apart(*single), draws, rng)[1:])
        hits["frames"] += low <= truth_of_frames <= high
    return {name: count / repetitions for name, count in hits.items()}


def _resampled(
    reals: np.ndarray,
    fakes: np.ndarray,
    real_groups: np.ndarray,
    fake_groups: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> tuple[float, np.ndarray, Resampling]:
    """The AUC, and the AUC under each weighting of the groups."""
    groups = int(max(real_groups.max(), fake_groups.max())) + 1
    resampling = Resampling(groups, draws, seed=int(rng.integers(2**31)))
    wins = _wins(reals, fakes, real_groups, fake_groups, groups)
    weights = np.concatenate([np.ones((1, groups)), resampling.weights]).astype(np.float32)
    values = _areas(wins, real_groups, fake_groups, weights).astype(np.float64)
    return float(values[0]), values[1:], resampling


def _apart(reals: np.ndarray, fakes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(reals)), len(reals) + np.arange(len(fakes))


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
