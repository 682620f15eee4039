"""What the numbers are called, and the form of the predictions that they are computed from."""

import math
from collections.abc import Mapping

import pyarrow as pa

SELECTION_METRIC = "val/video/auc"
"""Chooses the best checkpoint and the champion. Higher is better."""

THRESHOLD = 0.5

LEVELS = ("frame", "video")

METRICS = (
    "auc",
    "acc",
    "balanced_acc",
    "f1",
    "ap",
    "eer",
    "pauc10",
    "tpr_at_fpr1",
    "log_loss",
    "brier",
    "ece",
    "acc_chosen",
    "f1_chosen",
)
"""See `fdtrain.metrics.binary`, which defines them."""

LOWER_IS_BETTER = ("eer", "log_loss", "brier", "ece")

LOW, HIGH = "_low", "_high"
"""Added to a metric's name: the ends of its 95 % interval."""

CHOSEN_THRESHOLD = "threshold"
"""`val/<level>/threshold`: the threshold chosen on the validation split."""

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
        ("score", pa.float64()),  # P(fake); float32 in files of older releases
        ("quality", pa.string()),
    ]
)


def metric_name(split: str, level: str, metric: str, method: str = "", end: str = "") -> str:
    """`<split>/<frame|video>/<metric><_low|_high>/<method>`; without `method`, over all manipulations."""
    return f"{split}/{level}/{metric}{end}" + (f"/{method}" if method else "")


def is_headline(name: str) -> bool:
    """Tell the metrics of all methods together, interval ends left out."""
    return name.count("/") == 2 and not name.endswith((LOW, HIGH))


def describe(metrics: Mapping[str, float], name: str) -> str:
    """A metric for people, `0.9512 [0.9301, 0.9688]`; without the brackets where the interval is undefined."""
    split, level, metric, *rest = name.split("/")
    method = rest[0] if rest else ""
    low, high = (metrics.get(metric_name(split, level, metric, method, end), math.nan) for end in (LOW, HIGH))
    value = "undefined" if math.isnan(metrics[name]) else f"{metrics[name]:.4f}"
    return value if math.isnan(low) else f"{value} [{low:.4f}, {high:.4f}]"


def jsonable(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """For a JSON file, which has neither NaN nor infinity: such a value is null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def from_json(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """The way back from `jsonable`."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}
