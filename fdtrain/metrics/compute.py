"""All metrics of a split, per frame and per video, overall and for each manipulation against its real videos."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from datasets_shards.schema import DEEPFAKE_DETECTION
from fdtrain.metrics.binary import best_threshold, binary_metrics
from fdtrain.metrics.bootstrap import MIN_CLUSTERS, Resampling, counted_clusters
from fdtrain.metrics.names import CHOSEN_THRESHOLD, HIGH, LEVELS, LOW, metric_name
from fdtrain.metrics.samples import Samples, by_dataset, headline
from fdtrain.metrics.weighted import WeightedMetrics


def compute_metrics(
    predictions: pa.Table,
    split: str,
    *,
    video_score: str = "mean",
    thresholds: Mapping[str, float] | None = None,
    draws: int = 0,
    seed: int = 0,
) -> dict[str, float]:
    """All metrics of one split.

    Args:
        predictions: Columns of `PREDICTION_SCHEMA`. Metrics without a method's name are of one dataset (`headline`).
        split: First part of the names.
        video_score: As `VIDEO_SCORES`.
        thresholds: Those chosen on the validation split, by level; as `choose_thresholds`.
        draws: Of the bootstrap; with 0 there are no intervals.
        seed: Of the bootstrap.

    Returns:
        Name (`metric_name`) -> value; NaN where a metric is undefined.

    Raises:
        FloatingPointError: a score is not finite.
        UserError: `video_score` is unknown.
    """
    metrics: dict[str, float] = {}
    for number, part in enumerate(by_dataset(predictions).values()):
        frames = _samples(part, split)
        clusters = int(frames.clusters.max(initial=-1)) + 1
        # Of so few clusters every interval is undefined, whatever is drawn.
        resampling = Resampling(clusters, draws if clusters >= MIN_CLUSTERS else 0, seed) if draws else None
        for level, samples in _levels(frames, video_score):
            threshold = (thresholds or {}).get(level, math.nan)
            for method in samples.fake_methods if number else ("", *samples.fake_methods):
                values, ends = _metrics_of(samples, method, threshold, resampling)
                metrics |= {metric_name(split, level, name, method): value for name, value in values.items()}
                metrics |= {metric_name(split, level, name, method, end): value for (name, end), value in ends.items()}
    return metrics


def _metrics_of(
    samples: Samples, method: str, threshold: float, resampling: Resampling | None
) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """The metrics of one method against the real samples, or of all, by name, and their ends by (name, end)."""
    chosen = samples.against(method)
    labels, scores, groups = samples.labels[chosen], samples.scores[chosen], samples.clusters[chosen]
    values = binary_metrics(labels, scores, threshold)
    if resampling is None:
        return values, {}
    drawn = WeightedMetrics(labels, scores, groups, resampling.clusters, threshold)(resampling.weights)
    counted = counted_clusters(labels, groups)
    intervals = {name: resampling.interval(value, drawn[name], counted) for name, value in values.items()}
    return values, {
        (name, end): bound for name, both in intervals.items() for end, bound in zip((LOW, HIGH), both, strict=True)
    }


def choose_thresholds(predictions: pa.Table, video_score: str = "mean") -> dict[str, float]:
    """The best threshold on P(fake) of frames and of videos (`best_threshold`); NaN where there is none.

    Args: as `compute_metrics`, of the validation split.
    """
    levels = _levels(_samples(headline(predictions), "val"), video_score)
    return {level: best_threshold(samples.labels, samples.scores) for level, samples in levels}


def threshold_metrics(thresholds: Mapping[str, float]) -> dict[str, float]:
    """`val/<level>/threshold`, under which the thresholds stand among the metrics."""
    return {metric_name("val", level, CHOSEN_THRESHOLD): value for level, value in thresholds.items()}


def known_thresholds(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """The way back from `threshold_metrics`; empty where nothing was chosen."""
    found = {level: metrics.get(metric_name("val", level, CHOSEN_THRESHOLD)) for level in LEVELS}
    return {level: value for level, value in found.items() if value is not None}


def remarks(predictions: pa.Table, split: str) -> list[str]:
    """Why metrics of these predictions, or their intervals, are undefined: a line for people each."""
    return [line for name, part in by_dataset(predictions).items() for line in _remarks(part, split, name)]


def _remarks(predictions: pa.Table, split: str, dataset: str) -> list[str]:
    samples = _samples(predictions, split)
    lines = []
    whose = f" of {dataset}" if dataset == DEEPFAKE_DETECTION else ""
    if len(samples) == 0 or samples.labels.all() or not samples.labels.any():
        kind = "fake" if len(samples) and samples.labels.all() else "real"
        what = f"{len(samples)} samples{whose}, all of them {kind}"
        lines.append(f"{split}: {what}: what compares real and fake is undefined")
    if len(samples) > 1 and samples.scores.min() == samples.scores.max():
        lines.append(f"{split}: every score{whose} is {samples.scores[0]:.4g}: the model tells nothing apart")
    for method in ("", *samples.fake_methods):
        part = samples.against(method)
        clusters = counted_clusters(samples.labels[part], samples.clusters[part])
        if 0 < clusters < MIN_CLUSTERS:
            of = f" of {method}" if method else whose
            lines.append(
                f"{split}: real samples or fakes{of} are of {clusters} groups of people alone, {MIN_CLUSTERS} are "
                "needed for an interval"
            )
            if not method:
                return lines  # nor has a part of them more
    return lines + [
        f"{split}: per {level}, every fake{whose} scores {'above' if auc else 'below'} every real one: an AUC of "
        f"{auc:g} and what follows from it have no interval, since no draw differs"
        for level, levelled in _levels(samples, "mean")
        if (auc := _perfect(levelled)) is not None
    ]


def _perfect(samples: Samples) -> float | None:
    """The AUC, where it is 1 or 0."""
    fake, real = samples.scores[samples.labels], samples.scores[~samples.labels]
    if not len(fake) or not len(real):
        return None
    return 1.0 if fake.min() > real.max() else 0.0 if fake.max() < real.min() else None


def _samples(predictions: pa.Table, split: str) -> Samples:
    samples = Samples.of(predictions)
    if not np.isfinite(samples.scores).all():
        raise FloatingPointError(f"{split}: the model gave scores that are not finite; it diverged, lower optim.lr")
    return samples


def _levels(frames: Samples, video_score: str) -> Iterator[tuple[str, Samples]]:
    yield "frame", frames
    yield "video", frames.per_video(video_score)
