"""What follows the trainings: matrices, evaluations on other data, the report; each is done when its input changes."""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets_shards.schema import Manifest, quality_name
from fdtrain.data.remote import is_remote
from fdtrain.report.runs import EVALUATIONS
from fdtrain.run_folder import RunFolder
from launch.study.folder import StudyFolder
from launch.study.grid import Cell
from launch.study.interrupt import Interrupt
from launch.study.plan import duration
from launch.study.process import Command, last_words, torchrun_words
from launch.study.settings import Study

DONE = "steps"
"""Note of the inputs that each step was done with."""


@dataclass(frozen=True)
class Step:
    """A command of fdtrain.

    Args:
        name: For people, and of its log.
        words: Behind `python`.
        out: What it writes last.
        digest: Of all that its result follows from.
    """

    name: str
    words: tuple[str, ...]
    out: Path
    digest: str

    def is_done(self, folder: StudyFolder) -> bool:
        """Whether it was done with the same input."""
        return self.out.exists() and folder.note(DONE).get(self.name) == self.digest


def evaluation_steps(study: Study, folder: StudyFolder, cells: Sequence[Cell], ranks: int) -> list[Step]:
    """What is to be evaluated of the finished cells.

    Args:
        study: What is declared.
        folder: Its folder.
        cells: The finished ones.
        ranks: Processes of an evaluation.
    """
    steps = []
    start = torchrun_words(ranks) if ranks > 1 else ["-m", "fdtrain"]
    roots: dict[str, list[Cell]] = {}
    for cell in cells:
        roots.setdefault(cell.config.data.root, []).append(cell)
    if study.qualities:
        for root, group in roots.items():
            out = matrix_folder(study, folder, group[0], len(roots) > 1)
            words = [*start, "evaluate", "--matrix", "--model", *(str(folder.run(cell.name)) for cell in group)]
            words += _data(group[0], root, *map(str, study.qualities), batch_size=study.evaluate.batch_size)
            sets = [(root, quality_name(quality)) for quality in study.qualities]
            digest = _digest(words, _runs(folder, group), map(_set_digest, sets))
            steps.append(Step(out.name, (*words, "--out", str(out)), out / "matrix.parquet", digest))
    for cell in cells:
        quality = cell.config.data.quality
        for name, root in (study.evaluate.roots or {}).items():
            if root == cell.config.data.root:
                continue  # its own test split
            out = folder.run(cell.name) / EVALUATIONS / f"{name}.json"
            words = [*start, "evaluate", "--model", str(folder.run(cell.name))]
            words += _data(cell, root, str(quality), batch_size=study.evaluate.batch_size)
            digest = _digest(words, _runs(folder, [cell]), [_set_digest((root, quality_name(quality)))])
            steps.append(Step(f"{cell.name}-on-{name}", (*words, "--out", str(out)), out, digest))
    return steps


def matrix_folder(study: Study, folder: StudyFolder, cell: Cell, several: bool) -> Path:
    """`matrix/`, or with several roots `matrix-c23/`: by the names that the axis of `data.root` gives them."""
    if not several:
        return folder.path / "matrix"
    name = cell.place.get("data.root") or hashlib.sha256(cell.config.data.root.encode()).hexdigest()[:8]
    return folder.path / f"matrix-{name}"


def report_step(study: Study, folder: StudyFolder, cells: Sequence[Cell], steps: Sequence[Step], record: bytes) -> Step:
    """The report of the finished cells.

    Args:
        study: What is declared.
        folder: Its folder.
        cells: The finished ones, at least one.
        steps: What was evaluated.
        record: What study.json says.
    """
    out = folder.path / "report"
    words = ["-m", "fdtrain", "report", "--out", str(out), *(str(folder.run(cell.name)) for cell in cells)]
    done = [step for step in steps if step.is_done(folder)]  # what there is beside is of other models
    if matrices := [str(step.out) for step in done if step.out.name == "matrix.parquet"]:
        words += ["--matrix", *matrices]
    words += ["--study", str(folder.record), "--faces", str(study.report.faces)]
    words += ["--samples", str(study.report.samples)] if study.report.figures else ["--no_figures"]
    digest = _digest(words, _runs(folder, cells), [step.digest for step in done], [record.decode()])
    return Step("report", tuple(words), out / "index.html", digest)


def do(
    steps: Iterable[Step], folder: StudyFolder, environment: Mapping[str, str], interrupt: Interrupt
) -> dict[str, str]:
    """Do the steps that aren't done; gives the reasons of those that failed, by name."""
    reasons = {}
    for step in steps:
        if interrupt.requested:
            reasons[step.name] = "not begun: the study was interrupted"
            continue
        if step.is_done(folder):
            continue
        log, began = folder.log(step.name), time.monotonic()
        print(f"{step.name}: its output is {log}", flush=True)
        command = Command(step.words, log, environment, is_training=False)
        if wait_for(command, interrupt) == 0:
            folder.write_note(DONE, folder.note(DONE) | {step.name: step.digest})
            print(f"{step.name}: done in {duration(time.monotonic() - began)}", flush=True)
        else:
            reasons[step.name] = "interrupted" if interrupt.requested else last_words(log, command.begins_at)
            print(f"{step.name}: not done: {reasons[step.name]}", flush=True)
    return reasons


def wait_for(command: Command, interrupt: Interrupt) -> int | None:
    """Wait for a command's end, or end it; gives its exit code."""
    try:
        while command.poll() is None and not interrupt.impatient:
            if interrupt.requested:
                command.stop()
            time.sleep(0.1)
    finally:
        command.kill()
    return command.poll()


def _data(cell: Cell, root: str, *qualities: str, batch_size: int) -> list[str]:
    words = ["--data.root", root, "--data.quality", *qualities, "--batch_size", str(batch_size)]
    if cell.config.data.cache_dir and is_remote(root):
        words += ["--data.cache_dir", cell.config.data.cache_dir]
        words += ["--data.cache_bytes", str(cell.config.data.cache_bytes)]
    return words


def _runs(folder: StudyFolder, cells: Iterable[Cell]) -> list[str]:
    """What tells a run from any other in the same place."""
    statuses = [RunFolder(folder.run(cell.name)).status() for cell in cells]
    return [f"{status.get('state')} {status.get('step')} {status.get('time')}" for status in statuses]


def _set_digest(place: tuple[str, str]) -> str:
    root, name = place
    return f"{root}/{name}" if is_remote(root) else Manifest.load(Path(root) / name).digest


def _digest(*parts: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps([list(part) for part in parts]).encode()).hexdigest()
