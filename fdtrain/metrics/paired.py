"""Is one model better than another? Both are judged on the same resampled clusters."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fdtrain.config.checks import UserError
from fdtrain.metrics.bootstrap import DRAWS, Resampling, counted_clusters
from fdtrain.metrics.samples import Samples, by_dataset, headline
from fdtrain.metrics.weighted import WeightedMetrics


@dataclass(frozen=True)
class PairedDifference:
    """What the paired bootstrap says.

    Args:
        first: The metric of the first model.
        second: Of the second.
        difference: second - first.
        low: Lower end of the difference's 95 % interval; NaN where that is undefined.
        high: Upper end.
        share_better: Share of the draws in which the second model has the higher metric; NaN without draws.
        p: Two-sided, of no difference: Student's t by the deviation of the draws, which also tells apart what so few
            draws never show; NaN where there is no interval.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    share_better: float
    p: float


def paired_bootstrap(
    first: pa.Table,
    second: pa.Table,
    *,
    level: Literal["frame", "video"] = "video",
    metric: str = "auc",
    draws: int = DRAWS,
    seed: int = 0,
    video_score: str = "mean",
) -> PairedDifference:
    """The difference of two models on the same samples; the second is better where `low > 0`.

    Of a metric in `LOWER_IS_BETTER` it is better where `high < 0`.

    Args:
        first: Predictions, columns of `PREDICTION_SCHEMA`.
        second: Of the same keys, in any order.
        level: What a sample is.
        metric: One of `METRICS`, but for those at a chosen threshold; `auc/Deepfakes` for one manipulation.
        draws: Of the bootstrap.
        seed: Of the bootstrap.
        video_score: As `VIDEO_SCORES`.

    Raises:
        UserError: the predictions aren't of the same samples, or there is no such metric.
        FloatingPointError: a score is not finite.
    """
    second = _in_order_of(first, second)
    name, _, method = metric.partition("/")
    values, drawn = [], []
    for table in (first, second):
        samples = Samples.of(_compared(table, metric))
        if not np.isfinite(samples.scores).all():
            raise FloatingPointError("a score is not finite; evaluate the model again, or leave it out")
        if level == "video":
            samples = samples.per_video(video_score)
        clusters = int(samples.clusters.max(initial=-1)) + 1
        part = samples.against(method)
        weighted = WeightedMetrics(samples.labels[part], samples.scores[part], samples.clusters[part], clusters)
        resampling = Resampling(clusters, draws, seed)
        whole = weighted(np.ones((1, clusters), np.uint8))
        if name not in whole:
            raise UserError(f"metric: {name!r} is unknown; choose one of {', '.join(whole)}")
        values.append(float(whole[name][0]))
        drawn.append(weighted(resampling.weights)[name])
    difference = values[1] - values[0]
    differences = drawn[1] - drawn[0]
    counted = counted_clusters(samples.labels[part], samples.clusters[part])
    low, high = resampling.interval(difference, differences, counted)
    defined = differences[:draws][np.isfinite(differences[:draws])]
    share = float(np.mean(defined > 0)) if len(defined) else math.nan
    p = math.nan if math.isnan(low) else _p_value(difference, float(np.std(defined)), counted)
    return PairedDifference(values[0], values[1], difference, low, high, share, p)


def _p_value(difference: float, deviation: float, clusters: int) -> float:
    """Return the two-sided p, with the expansion for few clusters that `bca_interval` has."""
    from scipy.special import stdtr

    if not deviation:
        return math.nan
    return float(2 * stdtr(clusters - 1, -abs(difference) / (deviation * math.sqrt(clusters / (clusters - 1)))))


def _compared(predictions: pa.Table, metric: str) -> pa.Table:
    """Predictions of the dataset that a metric is of. Raises UserError where it is of a method without fakes."""
    method = metric.partition("/")[2]
    if not method:
        return headline(predictions)
    fakes: list[str] = []
    for part in by_dataset(predictions).values():
        own = Samples.of(part).fake_methods
        if method in own:
            return part
        fakes += own
    raise UserError(f"metric: {metric}: there are fakes of {', '.join(fakes)} only")


def _in_order_of(first: pa.Table, second: pa.Table) -> pa.Table:
    """The rows of `second` in the order of `first`."""
    if first["key"].equals(second["key"]):
        return second
    places = pc.index_in(first["key"], second["key"].combine_chunks())
    if first.num_rows != second.num_rows or places.null_count:
        raise UserError("the predictions are of different samples; evaluate both models on one split of one root")
    return second.take(places)
