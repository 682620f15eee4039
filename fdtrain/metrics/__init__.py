"""What the numbers are and what they are called, defined once.

A metric's name is `<split>/<frame|video>/<metric>[/<method>]`, such as `val/video/auc` or `test/frame/f1/Deepfakes`;
`_low` and `_high` after the metric are the ends of its 95 % interval: `test/video/auc_low/Deepfakes`. A video is
(method, video): the four fakes of one pair are four videos. A metric with a method's name compares that manipulation
with the real videos of its own dataset. One without is over FaceForensics++ alone where there are samples of it.
"""

from fdtrain.metrics.binary import best_threshold, binary_metrics
from fdtrain.metrics.bootstrap import DRAWS, Resampling
from fdtrain.metrics.clusters import identity_clusters
from fdtrain.metrics.compute import choose_thresholds, compute_metrics, known_thresholds, remarks, threshold_metrics
from fdtrain.metrics.names import (
    HIGH,
    LEVELS,
    LOW,
    LOWER_IS_BETTER,
    METRICS,
    PREDICTION_SCHEMA,
    SELECTION_METRIC,
    THRESHOLD,
    describe,
    from_json,
    is_headline,
    jsonable,
    metric_name,
)
from fdtrain.metrics.paired import PairedDifference, paired_bootstrap
from fdtrain.metrics.samples import (
    MEAN,
    VIDEO_SCORE,
    VIDEO_SCORES,
    Samples,
    headline,
    parse_video_score,
    pool_scores,
    video_scores,
)
from fdtrain.metrics.weighted import WeightedMetrics

__all__ = [
    "DRAWS",
    "HIGH",
    "LEVELS",
    "LOW",
    "LOWER_IS_BETTER",
    "MEAN",
    "METRICS",
    "PREDICTION_SCHEMA",
    "SELECTION_METRIC",
    "THRESHOLD",
    "VIDEO_SCORE",
    "VIDEO_SCORES",
    "PairedDifference",
    "Resampling",
    "Samples",
    "WeightedMetrics",
    "best_threshold",
    "binary_metrics",
    "choose_thresholds",
    "compute_metrics",
    "describe",
    "from_json",
    "headline",
    "identity_clusters",
    "is_headline",
    "jsonable",
    "known_thresholds",
    "metric_name",
    "paired_bootstrap",
    "parse_video_score",
    "pool_scores",
    "remarks",
    "threshold_metrics",
    "video_scores",
]
