"""What the numbers are and what they are called, defined once.

A metric's name is `<split>/<frame|video>/<metric>[/<method>]`, such as `val/video/auc` or `test/frame/f1/Deepfakes`. A
video is (method, video): the four fakes of one pair are four videos. Its score is the mean of its frames' scores. A
metric with a method's name compares that manipulation with the real videos alone.
"""

import math
import warnings
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from datasets_shards.schema import FAKE, REAL

SELECTION_METRIC = "val/video/auc"
"""Chooses the best checkpoint and the champion. Higher is better."""

THRESHOLD = 0.5

PREDICTION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("method", pa.string()),
        ("video", pa.string()),
        ("target", pa.string()),
        ("source", pa.string()),
        ("frame", pa.int32()),
        ("label", pa.int8()),
        ("score", pa.float32()),  # P(fake)
        ("quality", pa.string()),
    ]
)


def compute_metrics(predictions: pa.Table, split: str) -> dict[str, float]:
    """All metrics of one split, per frame and per video, overall and per method.

    Args:
        predictions: Columns of `PREDICTION_SCHEMA`.
        split: First part of the names.

    Returns:
        Name -> value; NaN where a metric is undefined (one class only).

    Raises:
        FloatingPointError: a score is not finite.
    """
    if not np.isfinite(predictions["score"].to_numpy()).all():
        raise FloatingPointError(f"{split}: the model gave scores that are not finite; it diverged, lower optim.lr")
    videos = video_scores(predictions)
    metrics: dict[str, float] = {}
    for level, table in (("frame", predictions), ("video", videos)):
        labels, scores = table["label"].to_numpy(), table["score"].to_numpy()
        methods = table["method"].to_numpy(zero_copy_only=False)
        metrics |= {f"{split}/{level}/{name}": value for name, value in binary_metrics(labels, scores).items()}
        for method in sorted(set(methods[labels == FAKE])):
            chosen = (labels == REAL) | (methods == method)
            values = binary_metrics(labels[chosen], scores[chosen])
            metrics |= {f"{split}/{level}/{name}/{method}": value for name, value in values.items()}
    return metrics


def video_scores(predictions: pa.Table) -> pa.Table:
    """One row per (method, video): the mean of its frames' scores. Columns method, video, label, score."""
    grouped = predictions.group_by(["method", "video"], use_threads=False)
    table = grouped.aggregate([("label", "min"), ("score", "mean")])
    return table.rename_columns({"label_min": "label", "score_mean": "score"})


def binary_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """AUC, ACC and F1 (of the class fake) of scores P(fake); ACC and F1 at a threshold of 0.5.

    Args:
        labels: 0 or 1, `[N]`.
        scores: Finite, `[N]`.

    Returns:
        "auc", "acc", "f1"; NaN where undefined: the AUC of one class, the F1 of no fake in truth or prediction.
    """
    from sklearn.exceptions import UndefinedMetricWarning  # seconds, which a training step need not pay
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    if len(labels) == 0:
        return {"auc": math.nan, "acc": math.nan, "f1": math.nan}
    predicted = scores >= THRESHOLD
    with warnings.catch_warnings():
        # One class only: scikit-learn warns and gives NaN, which is what we report.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        auc = float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else math.nan
        return {
            "auc": auc,
            "acc": float(accuracy_score(labels, predicted)),
            "f1": float(f1_score(labels, predicted, pos_label=FAKE, zero_division=math.nan)),
        }


def jsonable(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """For a JSON file, which has neither NaN nor infinity: such a value is null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
