"""Training curves, and the metrics of the models that came of them, as charts and as a table."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from datasets_shards.page import Picture
from fdtrain.metrics import SELECTION_METRIC
from fdtrain.report.content import Block, Cell, Estimate, Missing, Row, Section, Table, estimate
from fdtrain.report.drawing import add_legend, label_of, listing, panels, picture, style_of
from fdtrain.report.runs import Result, Run

MAX_POINTS = 200
"""Of a loss curve: of more lines of the log, neighbours are averaged."""

METRICS = {
    "auc": "AUC",
    "acc": "ACC",
    "acc_chosen": "ACC, chosen threshold",
    "balanced_acc": "balanced ACC",
    "f1": "F1",
    "f1_chosen": "F1, chosen threshold",
    "ap": "AP",
    "pauc10": "partial AUC, FPR ≤ 10 %",
    "tpr_at_fpr1": "TPR at 1 % FPR",
    "eer": "EER",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "ECE",
}
BARS = ("auc", "acc", "balanced_acc", "f1", "ap")
"""Those of Figure 5, in which more is better and 1 is best."""


def training_section(runs: Sequence[Run]) -> Section:
    """Loss and validation AUC by step."""
    section = Section("training", "Training curves")
    logged = [(i, run) for i, run in enumerate(runs) if any("train/loss" in line for line in run.log)]
    if logged:
        section.parts.append(_curves(logged))
    for run in runs:
        if not any("train/loss" in line for line in run.log):
            section.parts.append(Missing(f"{run.letter}: its log.jsonl has no training step"))
        elif not any(line.get(SELECTION_METRIC) is not None for line in run.log):
            section.parts.append(Missing(f"{run.letter}: its log.jsonl has no {SELECTION_METRIC}"))
    return section


def series(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a name in the log, where it has a value."""
    found = [(line["step"], line[name]) for line in run.log if line.get(name) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, float), np.array(values, float)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points: neighbours averaged, the step that of the last of them."""
    size = -(-len(steps) // MAX_POINTS)
    starts = np.arange(0, len(steps), max(size, 1))
    counts = np.diff([*starts, len(steps)])
    return steps[starts + counts - 1], np.add.reduceat(values, starts) / counts if len(steps) else values


def _curves(runs: Sequence[tuple[int, Run]]) -> Picture:
    figure, (above, below) = panels(2, 1, 5.4 + 0.2 * len(runs), sharex=True)
    told = []
    for number, run in runs:
        style = style_of(number)
        steps, losses = series(run, "train/loss")
        above.plot(*thinned(steps, losses), **style, linewidth=1.4, label=label_of(run))
        text = f"{run.letter}: loss from {losses[0]:.3f} to {losses[-1]:.3f} at step {steps[-1]:.0f}"
        epochs, values = series(run, SELECTION_METRIC)
        if len(values):
            below.plot(epochs, values, **style, linewidth=1.4, marker="o", markersize=3.5)
            best = np.flatnonzero(epochs == run.best_step)
            if len(best):
                below.plot(epochs[best[0]], values[best[0]], "o", ms=10, mfc="none", mec=style["color"], mew=1.6)
                text += f", best {SELECTION_METRIC} {values[best[0]]:.4f} at step {run.best_step}"
        told.append(text)
    above.set_ylabel("training loss")
    below.set_ylabel("validation AUC per video")
    below.set_xlabel("optimizer step")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, above)
    return picture(
        "training.png",
        figure,
        "Training loss, and the AUC per video on the validation split after each epoch. The ring is the model that "
        "was kept.",
        f"Line charts by optimizer step. {listing(told)}.",
    )


def metrics_section(runs: Sequence[Run]) -> Section:
    """The report's Figure 5, and every metric as a table."""
    section = Section("metrics", "Metrics on the test split")
    found = [(i, run, result) for i, run in enumerate(runs) if isinstance(result := run.result("test"), Result)]
    if found:
        section.parts.append(_bars(found))
        section.parts.append(metrics_table(runs))
    section.parts.extend([result for run in runs if isinstance(result := run.result("test"), Missing)])
    return section


def _bars(found: Sequence[tuple[int, Run, Result]]) -> Picture:
    shown = [name for name in BARS if any(f"test/video/{name}" in result.metrics for _, _, result in found)]
    figure, axes_of = panels(2, 1, 6.0 + 0.2 * len(found), sharex=True)
    width = 0.82 / len(found)
    told = []
    for axes, level in zip(axes_of, ("video", "frame"), strict=True):
        for place, (number, run, result) in enumerate(found):
            values = [estimate(result.metrics, f"test/{level}/{name}") for name in shown]
            x = np.arange(len(shown)) + (place - (len(found) - 1) / 2) * width
            there = [i for i, value in enumerate(values) if value is not None]
            heights = [value.value for value in values if value is not None]
            axes.bar(
                x[there],
                heights,
                width * 0.92,
                color=style_of(number)["color"],
                hatch="" if number < 7 else "//",
                yerr=_errors([value for value in values if value is not None]),
                error_kw={"linewidth": 1.1, "capsize": 2.5, "ecolor": "#333333"},
                label=label_of(run) if level == "video" else None,
            )
            for i in set(range(len(shown))) - set(there):
                axes.text(x[i], 0.01, "–", ha="center", va="bottom", color=style_of(number)["color"])
            told.append(
                f"{run.letter} per {level}: "
                + ", ".join(f"{METRICS[shown[i]]} {value.value:.3f}" for i in there if (value := values[i]) is not None)
            )
        axes.set_ylim(0, 1.02)
        axes.set_ylabel(f"per {level}")
        axes.grid(axis="x", visible=False)
    axes_of[-1].set_xticks(range(len(shown)), [METRICS[name] for name in shown])
    add_legend(figure, axes_of[0])
    return picture(
        "metrics.png",
        figure,
        "Figure 5. Test metrics per video and per frame; ACC and F1 at a threshold of 0.5. The lines are 95 % "
        "intervals, where they are known.",
        f"Bar charts. {listing(told)}.",
    )


def _errors(values: Sequence[Estimate]) -> np.ndarray:
    """Lengths of the error bars `[2, N]`; none where no interval is known."""
    none = (np.nan, np.nan)
    ends = [none if v.low is None or v.high is None else (v.value - v.low, v.high - v.value) for v in values]
    return np.maximum(np.array(ends).reshape(-1, 2).T, 0)


def metrics_table(runs: Sequence[Run]) -> Table:
    """Every metric of every run, per video and per frame."""
    blocks = [Block(f"per {level}", [_row(run, level) for run in runs]) for level in ("video", "frame")]
    caption = (
        "Test metrics with 95 % intervals where they are known. Less is better in EER, log loss, Brier score and ECE "
        "(expected calibration error); the chosen threshold is that of the validation split."
    )
    return Table("metrics.csv", caption, ["run", *METRICS.values()], blocks)


def _row(run: Run, level: str) -> Row:
    result = run.result("test")
    if isinstance(result, Missing):
        return Row(run.label, [result] * len(METRICS))
    return Row(run.label, [_cell(run, result, f"test/{level}/{name}") for name in METRICS])


def _cell(run: Run, result: Result, name: str) -> Cell:
    if found := estimate(result.metrics, name):
        return found
    if name in result.metrics:
        return Missing("Undefined for this split")
    if name.endswith("_chosen") and run.metrics.get("val/video/threshold") is None:
        return Missing("No threshold could be chosen on the validation split, or the run is of an older release")
    return Missing("Not in metrics.json, which an older release wrote")
