"""One model against another on the same samples, be it at another quality: the difference with a paired bootstrap
interval."""

import math
from typing import Literal

from fdtrain.metrics import paired_bootstrap
from fdtrain.report.content import Gain, Missing
from fdtrain.report.runs import Result

Level = Literal["frame", "video"]


def gain(names: str, first: Result, second: Result, *, level: Level, metric: str, method: str = "") -> Gain | Missing:
    """What the second result has over the first one.

    Args:
        names: Of the two, for the reason.
        first: What it is measured against.
        second: What is compared.
        level: "frame" or "video".
        metric: A metric's name.
        method: One manipulation against the real videos of its dataset; all where it is empty.
    """
    one, other = first.predictions, second.predictions
    keys, other_keys = (set(table["key"].to_pylist()) for table in (one, other))
    if keys != other_keys:
        return Missing(
            f"{names}: tested on different samples ({len(keys)} and {len(other_keys)}, {len(keys & other_keys)} in "
            "common), so there is no paired difference"
        )
    found = paired_bootstrap(one, other, level=level, metric=f"{metric}/{method}" if method else metric)
    if not math.isfinite(found.difference):
        return Missing(f"{names}: {metric} is undefined there")
    low, high, p = (value if math.isfinite(value) else None for value in (found.low, found.high, found.p))
    return Gain(found.difference, low, high, p=p)
