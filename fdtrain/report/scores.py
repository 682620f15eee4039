"""What the scores of the test split are worth: ROC curves and calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datasets_shards.page import Picture
from fdtrain.metrics import Resampling, headline, identity_clusters, video_scores
from fdtrain.metrics.binary import ECE_BINS, calibration_bins
from fdtrain.report.content import Missing, Part, Section, estimate
from fdtrain.report.drawing import MARKERS, add_legend, label_of, listing, panels, picture, style_of
from fdtrain.report.runs import Result, Run

FALSE_ALARMS = 0.1
"""The rate at which a ROC curve is told in words."""


def roc_section(runs: Sequence[Run]) -> Section:
    """ROC curves per video and per frame."""
    return Section("roc", "ROC", _charts(runs, _roc))


def calibration_section(runs: Sequence[Run]) -> Section:
    """How often what got a score is fake."""
    return Section("calibration", "Calibration", _charts(runs, _calibration))


Tested = tuple[int, Run, Result]


def _charts(runs: Sequence[Run], draw: Callable[[Sequence[Tested]], Picture]) -> list[Part]:
    results = [(i, run, run.result("test")) for i, run in enumerate(runs)]
    missing: list[Part] = [result for _, _, result in results if isinstance(result, Missing)]
    tested: list[Tested] = []
    for i, run, result in results:
        if isinstance(result, Result):
            if len(set(headline(result.predictions)["label"].to_pylist())) == 2:
                tested.append((i, run, result))
            else:
                missing.append(Missing(f"{run.letter}: its test split has one class only"))
    return [*([draw(tested)] if tested else []), *missing]


def _roc(tested: Sequence[Tested]) -> Picture:
    from sklearn.metrics import roc_curve

    figure, axes_of = panels(1, 2, 3.9 + 0.2 * len(tested), sharey=True)
    told = []
    for axes, level in zip(axes_of, ("video", "frame"), strict=True):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        for number, run, result in tested:
            frames = headline(result.predictions)
            table = video_scores(frames) if level == "video" else frames
            false, true, _ = roc_curve(table["label"].to_numpy(), table["score"].to_numpy())
            axes.plot(false, true, **style_of(number), linewidth=1.5, label=label_of(run))
            there = true[np.searchsorted(false, FALSE_ALARMS, side="right") - 1]
            found = estimate(result.metrics, f"test/{level}/auc")
            area = "" if found is None else f"AUC {found.text}, "
            told.append(f"{run.letter} per {level}: {area}TPR {there:.3f} at {FALSE_ALARMS:.0%} FPR")
        axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), xlabel="false positive rate", aspect="equal")
        axes.set_title(f"per {level}", fontsize=10)
    axes_of[0].set_ylabel("true positive rate")
    add_legend(figure, axes_of[0])
    return picture(
        "roc.png",
        figure,
        "ROC on the test split: fakes found against real ones called fake, over all thresholds.",
        f"ROC curves. {listing(told)}.",
    )


@dataclass(frozen=True)
class Reliability:
    """Frames in bins of equal width by P(fake); NaN where a bin is empty.

    Args:
        count: Frames, `[ECE_BINS]`.
        mean: Of their scores.
        share: Of fakes among them.
        low: Lower end of the share's 95 % interval; NaN where it is undefined.
        high: Upper end.
    """

    count: np.ndarray
    mean: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def reliability(predictions: pa.Table) -> Reliability:
    """Of predictions in `PREDICTION_SCHEMA`; the bins are those of the metric ECE."""
    scores, labels = predictions["score"].to_numpy().astype(float), predictions["label"].to_numpy()
    clusters, bins = identity_clusters(predictions), calibration_bins(scores)
    number = int(clusters.max()) + 1
    frames, fakes = (np.zeros((number, ECE_BINS)) for _ in range(2))
    np.add.at(frames, (clusters, bins), 1)
    np.add.at(fakes, (clusters, bins), labels)
    count = frames.sum(0)
    resampling = Resampling(number)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, share = np.bincount(bins, scores, ECE_BINS) / count, fakes.sum(0) / count
        drawn = (resampling.weights @ fakes) / (resampling.weights @ frames)
    low, high = np.transpose([resampling.interval(value, drawn[:, bin]) for bin, value in enumerate(share)])
    return Reliability(count, mean, share, low, high)


def _calibration(tested: Sequence[Tested]) -> Picture:
    figure, (above, below) = panels(2, 1, 6.2 + 0.2 * len(tested), sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
    told = []
    for number, run, result in tested:
        bins = reliability(headline(result.predictions))
        count, mean, share = bins.count, bins.mean, bins.share
        style = style_of(number)
        errors = np.maximum([share - bins.low, bins.high - share], 0)
        marker = MARKERS[number % len(MARKERS)]
        above.errorbar(mean, share, errors, **style, marker=marker, ms=5, lw=1.3, capsize=2.5, label=label_of(run))
        below.stairs(count / count.sum(), np.linspace(0, 1, ECE_BINS + 1), color=style["color"], linewidth=1.4)
        found = estimate(result.metrics, "test/frame/ece")
        text = "" if found is None else f"ECE {found.text}, "
        low, high = (np.flatnonzero(count)[end] for end in (0, -1))
        told.append(
            f"{run.letter}: {text}scores around {mean[low]:.2f} are fake in {share[low]:.0%} of {count[low]:.0f} "
            f"frames, those around {mean[high]:.2f} in {share[high]:.0%} of {count[high]:.0f}"
        )
    above.set(ylim=(-0.02, 1.02), ylabel="share of fakes")
    below.set(xlim=(0, 1), xlabel="P(fake), mean of the bin", ylabel="share of frames")
    add_legend(figure, above)
    return picture(
        "calibration.png",
        figure,
        f"Reliability diagram of the frames of the test split, {ECE_BINS} bins of equal width; on the dotted line "
        "scores mean what they say. The share of fakes in the split is part of it. The lines are 95 % intervals by "
        "bootstrap over identity-connected clusters of videos, where they are defined.",
        f"Reliability diagram. {listing(told)}.",
    )
