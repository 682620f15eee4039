"""What of a study is done, what is to be done, and how long that may take."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets_shards.schema import Manifest, ShardSetError, quality_name
from datasets_shards.yaml12 import YAMLError, load_yaml
from fdtrain.config import NO_OTHER_MODEL, Config, UserError, flatten
from fdtrain.data.remote import is_remote
from fdtrain.run_folder import RunFolder
from launch.study.folder import StudyFolder
from launch.study.grid import Cell
from launch.study.settings import Study
from launch.study.timing import Times, duration

State = Literal["finished", "started", "new"]


@dataclass(frozen=True)
class Entry:
    """A cell as it stands.

    Args:
        cell: The cell.
        state: Of its run.
        told: What else is to be said of it.
        expected_s: Seconds that the rest of it may take; None where nothing tells.
    """

    cell: Cell
    state: State
    told: str = ""
    expected_s: float | None = None


def look(cells: Sequence[Cell], folder: StudyFolder, restart: Sequence[str] = ()) -> list[Entry]:
    """How each cell stands.

    Args:
        cells: Of the study.
        folder: Of the study.
        restart: Cells that are to be trained anew whatever there is.

    Raises:
        UserError: a run that is there was trained with other settings or data, or `restart` names no cell.
    """
    names = [cell.name for cell in cells]
    if unknown := [name for name in restart if name not in names]:
        raise UserError(f"restart: {unknown[0]!r} is no cell of this study; they are {', '.join(names)}")
    states = {cell.name: "new" if cell.name in restart else _state(cell, folder.run(cell.name)) for cell in cells}
    times = Times([cell for cell in cells if states[cell.name] == "finished"], cells, folder)
    return [_entry(cell, states[cell.name], folder.run(cell.name), times) for cell in cells]


def _state(cell: Cell, place: Path) -> State:
    run = RunFolder(place)
    if not run.config.exists():
        return "new"
    if reason := difference(run, cell.config):
        raise UserError(
            f"{place}: {reason}; set it back, name another study.dir, or train it anew by --restart {cell.name}"
        )
    return "finished" if run.status().get("state") == "finished" else "started"


def difference(run: RunFolder, config: Config) -> str | None:
    """What a run was trained with that this configuration hasn't; None where it is the same training."""
    try:
        content = load_yaml(run.config.read_text(encoding="utf-8"))
        before = flatten(Config().to_dict()) | flatten(content)
    except (YAMLError, AttributeError) as error:
        return f"its config.yaml can't be read ({' '.join(str(error).split())})"
    now = flatten(config.to_dict())
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(NO_OTHER_MODEL):
            return f"was trained with {key} {before.get(key)}, and this study says {now.get(key)}"
    card = run.best / "model.json"
    if config.data.mix or is_remote(config.data.root) or not card.exists():
        return None
    digest = json.loads(card.read_bytes()).get("trained_on", {}).get("data.digest")
    try:
        manifest = Manifest.load(Path(config.data.root) / quality_name(config.quality))
    except ShardSetError:
        return None  # which `missing_data` says
    if digest and digest != manifest.digest:
        return f"was trained on other data than {config.data.root}/{quality_name(config.quality)} holds now"
    return None


def missing_data(study: Study, entries: Sequence[Entry]) -> None:
    """Raise UserError, or ShardSetError, where a shard set that the study needs isn't there; URLs are not asked."""
    wanted: dict[tuple[str, str], None] = {}
    for entry in entries:
        data = entry.cell.config.data
        tested = [data.quality, *study.qualities]
        trained = list(data.training_qualities) if entry.state != "finished" else []
        for quality in [*trained, *tested]:
            wanted[data.root, quality_name(quality)] = None
        for root in (study.evaluate.roots or {}).values():
            wanted[root, quality_name(data.quality)] = None
    for root, name in wanted:
        if is_remote(root):
            continue
        if not Path(root).is_dir():
            raise UserError(
                f"data.root: {root}: no such folder; give the folder that 'datasets_shards pack --out' wrote"
            )
        if not (Path(root) / name).is_dir():
            raise UserError(f"data.root: {root} holds no set {name}; pack it, or leave that quality out")
        Manifest.load(Path(root) / name)


def _entry(cell: Cell, state: State, place: Path, times: Times) -> Entry:
    if state == "finished":
        told = f"trained in {duration(times.done[cell.name][1])}" if cell.name in times.done else ""
        return Entry(cell, state, told, 0.0)
    status = RunFolder(place).status() if state == "started" else {}
    left, told = 1.0, ""
    if total := status.get("total_steps"):
        left = 1 - min(status.get("step", 0) / total, 1)
        told = f"after step {status.get('step', 0)} of {total}"
    if status.get("reason"):
        told = f"{told}; {status['state']}: {status['reason']}".removeprefix("; ")
    expected, why = times.expected(cell)
    return Entry(cell, state, "; ".join(filter(None, (told, why))), None if expected is None else expected * left)


def describe(study: Study, folder: StudyFolder, entries: Sequence[Entry], runner: str) -> str:
    """The plan, for a terminal.

    Args:
        study: What is declared.
        folder: Its folder.
        entries: As of `look`.
        runner: What runs them, in words.
    """
    axes: dict[str, dict[str, None]] = {}
    for entry in entries:
        for axis, value in entry.cell.place.items():
            axes.setdefault(axis, {})[value] = None
    lines = [f"study {study.name} in {folder.path}, by {runner}"]
    lines += [f"  {axis}: {', '.join(values)}" for axis, values in axes.items()]
    width = max(len(entry.cell.name) for entry in entries)
    words = {"finished": "done", "started": "goes on", "new": "to do"}
    for entry in entries:
        lines.append(f"  {entry.cell.name.ljust(width)}  {words[entry.state]:<7}  {entry.told}".rstrip())
    return "\n".join([*lines, f"then: {_what_follows(study)}"])


def _what_follows(study: Study) -> str:
    steps = []
    if study.qualities:
        steps.append(f"each model on {' '.join(map(quality_name, study.qualities))}")
    if study.evaluate.roots:
        steps.append(f"each on {' '.join(study.evaluate.roots)}")
    return ", ".join([*steps, "the report"])


def outlook(entries: Sequence[Entry], parallel: int | None) -> str:
    """How many trainings are done, and how long the rest takes.

    Args:
        entries: As of `look`.
        parallel: Trainings at a time; None where that isn't known.
    """
    todo = [entry for entry in entries if entry.state != "finished"]
    count = f"{len(entries) - len(todo)} of {len(entries)} trainings done"
    if not todo:
        return count
    known = [entry.expected_s for entry in todo if entry.expected_s is not None]
    at_a_time = {None: "if all run at once", 1: "one at a time"}.get(parallel, f"{parallel} at a time")
    if not known:
        return f"{count}; {at_a_time}; how long the rest takes is unknown: none like it has been timed here"
    total = max(sum(known) / (parallel or len(todo)), max(known))
    if len(known) == len(todo):
        return f"{count}; the rest takes about {duration(total)}, {at_a_time}"
    return f"{count}; {len(known)} of the rest take about {duration(total)}, {at_a_time}; of the others it is unknown"
