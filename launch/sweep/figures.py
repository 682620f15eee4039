"""Two figures of a search: its trials as lines over their settings, and which settings matter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.sweep.study import Study, Trial

MIN_TRIALS = 4
"""Fewer say nothing of what matters."""


def draw(study: Study) -> tuple[list[Path], list[str]]:
    """Draw into the search's `figures/`; gives the files, and a line for what couldn't be drawn."""
    folder = study.plan.folder / "figures"
    trials = [trial for trial in study.trials() if trial.best(study.maximize) is not None]
    if not trials:
        return [], ["no figures: no trial has a value"]
    folder.mkdir(exist_ok=True)
    files, remarks = [folder / "parallel_coordinates.png"], []
    _parallel_coordinates(study, trials, files[0])
    epoch = common_epoch(trials)
    try:
        found = importances(study, trials, epoch)
    except (ValueError, RuntimeError) as error:  # fANOVA's word for trees without variance is the latter
        remarks.append(f"no figure of importance: {error}")
    else:
        files.append(folder / "importance.png")
        _importance(study, found, epoch, len(trials), files[1])
    return files, remarks


def common_epoch(trials: Sequence[Trial]) -> int:
    """The last epoch that all of them reached: at it they can be compared."""
    return min(trial.epochs[-1].epoch for trial in trials)


def importances(study: Study, trials: Sequence[Trial], epoch: int) -> dict[str, float]:
    """Key -> share of the variance of the metric after that epoch which it explains, by fANOVA (Hutter et al., 2014).

    Raises:
        ValueError: too few trials, or they are all alike.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    compared = [(trial, value) for trial in trials if (value := _value_after(trial, epoch)) is not None]
    if len(compared) < MIN_TRIALS:
        raise ValueError(f"{len(compared)} trials with a value are too few; {MIN_TRIALS} are the least")
    if len({value for _, value in compared}) == 1:
        raise ValueError(f"all trials have the same value after epoch {epoch}")
    copy = optuna.create_study(direction="maximize" if study.maximize else "minimize")
    for trial, value in compared:
        copy.add_trial(optuna.trial.create_trial(params=trial.drawn, distributions=study.distributions, value=value))
    return get_param_importances(copy, evaluator=FanovaImportanceEvaluator(seed=0))


def _value_after(trial: Trial, epoch: int) -> float | None:
    return next((each.value for each in trial.epochs if each.epoch == epoch), None)


def _parallel_coordinates(study: Study, trials: Sequence[Trial], path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    parameters = study.plan.space.parameters
    columns = [_axis(parameter.kind, [trial.settings[parameter.key] for trial in trials]) for parameter in parameters]
    values = np.array([trial.best(study.maximize) for trial in trials], dtype=float)
    columns.append(_axis("uniform", values.tolist()))
    names = [*(parameter.key for parameter in parameters), f"{study.plan.sweep.metric}\n(best epoch)"]
    figure = Figure(figsize=(2.2 * len(names) + 1.5, 4.5), layout="constrained")
    axes = figure.subplots()
    low, high = float(values.min()), float(values.max())
    shade = (values - low) / (high - low) if high > low else np.ones_like(values)
    colors = colormaps["viridis" if study.maximize else "viridis_r"]
    for row in np.argsort(shade if study.maximize else -shade):
        trial = trials[row]
        heights = [positions[row] for positions, _ in columns]
        style: dict[str, Any] = {"linestyle": "-" if trial.state == "finished" else ":", "linewidth": 1.6}
        axes.plot(range(len(names)), heights, color=colors(float(shade[row])), **style)
    behind = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
    for place, (_, marks) in enumerate(columns):
        axes.axvline(place, color="0.75", linewidth=0.8, zorder=0)
        for height, text in marks:
            axes.text(place + 0.04, height, text, fontsize=8, va="center", color="0.25", bbox=behind)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 0.6)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(f"{study.plan.group}: {len(trials)} trials; dotted: not at full length", fontsize=10)
    figure.savefig(path, dpi=130)


def _axis(kind: str, values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights of the values, 0 to 1, and the marks of their axis."""
    if kind == "choice" or not all(isinstance(value, int | float) for value in values):
        names = sorted({str(value) for value in values})
        heights = {name: index / max(1, len(names) - 1) for index, name in enumerate(names)}
        return [heights[str(value)] for value in values], [(heights[name], name) for name in names]
    numbers = np.array(values, dtype=float)
    scaled = np.log10(numbers) if kind == "loguniform" else numbers
    low, high = float(scaled.min()), float(scaled.max())
    if high == low:
        return [0.5] * len(values), [(0.5, f"{numbers[0]:.3g}")]
    marks = [(height, low + height * (high - low)) for height in (0.0, 0.5, 1.0)]
    text = [(height, f"{10**value if kind == 'loguniform' else value:.3g}") for height, value in marks]
    return ((scaled - low) / (high - low)).tolist(), text


def _importance(study: Study, found: dict[str, float], epoch: int, count: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 1.2 + 0.4 * len(found)), layout="constrained")
    axes = figure.subplots()
    keys = list(reversed(found))
    bars = axes.barh(keys, [found[key] for key in keys], color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=3)
    axes.set_xlabel(f"share of the variance of {study.plan.sweep.metric} after epoch {epoch} (fANOVA, {count} trials)")
    axes.set_title(study.plan.group, fontsize=10)
    axes.margins(x=0.12)
    figure.savefig(path, dpi=130)
