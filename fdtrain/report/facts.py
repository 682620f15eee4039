"""What a run is: an overview of all of them, what they differ in, and everything that is known of each."""

from collections.abc import Sequence
from importlib import metadata
from typing import Any

from datasets_shards.schema import quality_name
from fdtrain.metrics import SELECTION_METRIC
from fdtrain.report.content import Block, Cell, Facts, Missing, Part, Row, Section, Table, estimate
from fdtrain.report.runs import Result, Run
from fdtrain.report.training import series

PLACES = ("run.", "tracking.", "data.cache_")
"""Settings that say where things lie, not what a run does."""


def overview_section(runs: Sequence[Run]) -> Section:
    """A row for each run."""
    columns = ["run", "model", "data", "state", "steps", "best step", "validation AUC", "test AUC"]
    caption = "The letters stand for the runs in all that follows. AUC per video."
    return Section("runs", "Runs", [Table("runs.csv", caption, columns, [Block("", [_row(run) for run in runs])])])


def _row(run: Run) -> Row:
    compression = "" if isinstance(run.compression, Missing) else f"{run.compression}, "
    cells: list[Cell] = [
        run.config["model.name"],
        f"{compression}{quality_name(run.quality)}",
        str(run.status.get("state", "unknown")),
        str(run.status.get("step", "unknown")),
        Missing(f"{run.letter}: no model was validated yet") if run.best_step is None else str(run.best_step),
        _auc(run, "val"),
        _auc(run, "test"),
    ]
    return Row(run.label, cells)


def _auc(run: Run, split: str) -> Cell:
    result = run.result(split)
    if isinstance(result, Missing):
        return result
    name = f"{split}/video/auc"
    return estimate(result.metrics, name) or Missing(f"{run.letter}: {name} is undefined, the split has one class")


def facts_section(runs: Sequence[Run]) -> Section:
    """What the runs differ in, then the facts of each with its configuration."""
    parts: list[Part] = [*_differences(runs)]
    for run in runs:
        parts.append(Facts(run.label, _facts(run), run.text))
        parts += _unknown(run)
    return Section("facts", "Run facts", parts)


def _differences(runs: Sequence[Run]) -> list[Part]:
    if len(runs) == 1:
        return []
    keys = dict.fromkeys(key for run in runs for key in run.config if not key.startswith(PLACES))
    rows = [
        Row(key, [_plain(run.config.get(key)) for run in runs])
        for key in keys
        if len({_plain(run.config.get(key)) for run in runs}) > 1
    ]
    if not rows:
        return ["The runs have the same configuration."]
    caption = "Settings that the runs differ in."
    return [Table("differences.csv", caption, ["setting", *(run.letter for run in runs)], [Block("", rows)])]


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _facts(run: Run) -> dict[str, str]:
    known = run.trained_on
    facts = {
        "Folder": str(run.path),
        "State": ", ".join(str(run.status[key]) for key in ("state", "reason") if run.status.get(key)) or "unknown",
        "Model": f"{run.config['model.name']}{_input(run)}",
        "Data": f"{run.config['data.root']}, {quality_name(run.quality)}",
        "Data digest": str(known.get("data.digest", "unknown")),
        "Git revision": str(known.get("git.revision", "unknown")),
        "Versions": str(known.get("versions", "unknown")),
        "Registered as": str(run.status.get("registered") or "not registered") + _chosen(run),
    }
    if not isinstance(run.data, Missing):
        manifest = run.data.shard_set.manifest
        facts |= {
            "Source": ", ".join(f"{key} {value}" for key, value in manifest.source.items()),
            "Encoder": ", ".join(f"{key} {value}" for key, value in manifest.encoder.items()),
            "Crops": ", ".join(f"{key} {value}" for key, value in manifest.crop.items()),
            "Splits": ", ".join(f"{key} {value}" for key, value in manifest.splits.items()),
            "Samples": "; ".join(
                f"{split} {sum(methods.values())} ({', '.join(f'{n} {name}' for name, n in methods.items())})"
                for split, methods in manifest.counts.items()
            ),
        }
    for name, label in (("train/images_per_s", "Images/s"), ("train/data_wait", "Share of time waiting for data")):
        _, values = series(run, name)
        if len(values):
            middle = sorted(values)[len(values) // 2]
            facts[label] = f"{middle:.3g} (median of {len(values)} lines of the log)"
    return facts


def _input(run: Run) -> str:
    spec = run.card.get("input")
    return f", {spec.size} px, mean {spec.mean}, std {spec.std}, {spec.interpolation}" if spec else ""


def _unknown(run: Run) -> list[Missing]:
    missing = [run.data] if isinstance(run.data, Missing) else []
    for key, what in (("data.digest", "data digest"), ("git.revision", "git revision"), ("versions", "versions")):
        if key not in run.trained_on:
            why = "an older release" if run.card else "it has no model yet"
            missing.append(Missing(f"{run.letter}: the {what} isn't recorded ({why})"))
    return missing


def made_with() -> str:
    """What wrote the report."""
    names = ("fdtrain", "scikit-learn", "matplotlib", "numpy", "pyarrow")
    return "Made with " + ", ".join(f"{name} {metadata.version(name)}" for name in names)


def selection_note(runs: Sequence[Run]) -> str:
    """How the models that count were chosen, and whether every run has one."""
    done = sum(isinstance(run.result("test"), Result) for run in runs)
    return (
        f"{done} of {len(runs)} runs have test metrics. The model of a run is the one with the best {SELECTION_METRIC}."
    )


def _chosen(run: Run) -> str:
    count = run.status.get("best_of", 1)
    return f", the best of {count} trials by validation" if count > 1 else ""
