"""What a search came to: a table for people, files for programs, the time it took and would have taken."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets_shards.schema import quality_name, write_atomic
from launch.sweep.study import Study, Trial


@dataclass(frozen=True)
class Times:
    """Seconds.

    Args:
        wall: Of the sweep, all its starts together.
        plain: Of the same trials at full length, one after another: training and validation alone, by the seconds an
            epoch took here.
        epochs: Done.
        full_epochs: Of all trials at full length.
    """

    wall: float
    plain: float
    epochs: int
    full_epochs: int


def measure(study: Study) -> Times:
    """The time of a search, and of a plain loop over it. Trials that never ended an epoch are not in the loop."""
    length = study.full_length
    trials = [trial for trial in study.trials() if trial.epochs]
    later = [epoch.seconds for trial in trials for epoch in trial.epochs[1:]]
    plain = 0.0
    for trial in trials:
        own = [epoch.seconds for epoch in trial.epochs[1:]] or later or [trial.epochs[0].seconds]
        plain += trial.epochs[0].seconds + (length - 1) * fmean(own)
    return Times(study.wall, plain, sum(len(trial.epochs) for trial in trials), length * len(trials))


def ranked(study: Study) -> list[Trial]:
    """Trials from the best to the worst, finished ones first, those without a value last."""
    order = {"finished": 0, "stopped": 1, "running": 2, "failed": 3}
    sign = -1 if study.maximize else 1

    def place(trial: Trial) -> tuple[int, float]:
        value = trial.best(study.maximize)
        return order[trial.state], float("inf") if value is None else sign * value

    return sorted(study.trials(), key=place)


def table(study: Study) -> str:
    """The table at the end."""
    keys = [parameter.key for parameter in study.plan.space.parameters]
    rows = [["trial", "state", "epochs", study.plan.sweep.metric, *keys]]
    for trial in ranked(study):
        value = trial.best(study.maximize)
        settings = [_cell(trial.settings.get(key)) for key in keys]
        shown = "-" if value is None else f"{value:.4f}"
        rows.append([str(trial.number), trial.state, str(len(trial.epochs)), shown, *settings])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"trial {trial.number} failed: {trial.reason}" for trial in study.trials("failed")]
    times = measure(study)
    lines.append(
        f"took {in_minutes(times.wall)} for {times.epochs} epochs; the same trials at full length, {times.full_epochs} "
        f"epochs one after another at the seconds an epoch took here, {in_minutes(times.plain)}"
    )
    return "\n".join([f"== {quality_name(study.plan.quality)}: {study.plan.folder}", *lines])


def write_results(study: Study, facts: dict[str, Any]) -> list[Path]:
    """Write results.csv and results.json into the folder of the search; `facts` go to the latter. Gives their paths."""
    plan = study.plan
    keys = [parameter.key for parameter in plan.space.parameters]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["trial", "state", "epochs", plan.sweep.metric, "seconds", *keys, "run", "reason"])
    records = []
    for trial in ranked(study):
        value, run = trial.best(study.maximize), str(plan.trial_folder(trial.number))
        settings = [trial.settings.get(key) for key in keys]
        seconds = round(trial.seconds, 1)
        writer.writerow([trial.number, trial.state, len(trial.epochs), value, seconds, *settings, run, trial.reason])
        records.append(vars(trial) | {"epochs": [vars(epoch) for epoch in trial.epochs], "value": value, "run": run})
    content = {
        "quality": plan.quality,
        "metric": plan.sweep.metric,
        "mode": "max" if study.maximize else "min",
        "best": best.number if (best := study.best()) else None,
        "times": vars(measure(study)),
        "trials": records,
    }
    files = {"results.csv": text.getvalue(), "results.json": json.dumps(content | facts, indent=2) + "\n"}
    for name, body in files.items():
        write_atomic(plan.folder / name, body.encode())
    return [plan.folder / name for name in files]


def in_words(settings: dict[str, Any]) -> str:
    """`optim.lr 0.0012, augment.preset flip`."""
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items()
    )


def in_minutes(seconds: float) -> str:
    """`48 s`, `12.5 min`, `3.2 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
