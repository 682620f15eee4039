"""The trainings of a study, some at a time: one that fails doesn't stop the others, and all stop when told to."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fdtrain.run_folder import LEAVE_S, RunFolder
from launch.study.folder import StudyFolder
from launch.study.grid import Cell
from launch.study.interrupt import Interrupt
from launch.study.plan import Entry
from launch.study.process import last_words
from launch.study.timing import duration

TELL_S = 30.0
"""Between two lines on how far the trainings are."""


class Handle(Protocol):
    """A training that was started, as `process.Command` is one.

    Args:
        begins_at: Where its output begins in its log.
    """

    begins_at: int

    def poll(self) -> int | None:
        """The exit code, once it has ended."""

    def stop(self) -> None:
        """Tell it to save and stop; called again and again."""

    def kill(self) -> None:
        """End it at once."""


class Runner(Protocol):
    """What runs trainings."""

    @property
    def ranks(self) -> int:
        """Processes of each training."""

    @property
    def parallel(self) -> int:
        """Trainings at a time."""

    def describe(self) -> str:
        """For a terminal."""

    def start(self, cell: Cell, slot: int, folder: StudyFolder) -> Handle:
        """Start a training in one of `parallel` slots, numbered from 0."""


@dataclass
class _Running:
    cell: Cell
    handle: Handle
    slot: int
    began: float
    wall: float


def train_all(todo: Sequence[Entry], folder: StudyFolder, runner: Runner, interrupt: Interrupt) -> dict[str, str]:
    """Run trainings to their ends.

    Args:
        todo: What is to be trained, in order.
        folder: Of the study.
        runner: What runs them.
        interrupt: Asked all the time; once it is requested, what runs is told to stop and nothing else is begun.

    Returns:
        The reasons of those that didn't finish, by cell.
    """
    waiting, running, reasons = list(todo), list[_Running](), dict[str, str]()
    told = time.monotonic()
    try:
        while running or (waiting and not interrupt.requested):
            while waiting and len(running) < runner.parallel and not interrupt.requested:
                cell = waiting.pop(0).cell
                # Workers of a study that was killed save before they end.
                RunFolder(folder.run(cell.name)).wait_until_left(LEAVE_S, lambda: bool(interrupt.requested))
                slot = min(set(range(runner.parallel)) - {each.slot for each in running})
                number = len(todo) - len(waiting)
                print(
                    f"[{number}/{len(todo)}] {cell.name}: training; its output is {folder.log(cell.name)}", flush=True
                )
                running.append(_Running(cell, runner.start(cell, slot, folder), slot, time.monotonic(), time.time()))
            for each in [each for each in running if each.handle.poll() is not None]:
                running.remove(each)
                if reason := _end(each, folder):
                    reasons[each.cell.name] = reason
            if interrupt.requested:
                for each in running:
                    each.handle.stop()
                if interrupt.impatient:
                    break
            elif time.monotonic() - told > TELL_S:
                told = time.monotonic()
                for each in running:
                    _tell(each, folder)
            time.sleep(0.1)
    finally:
        for each in running:
            each.handle.kill()
            reasons[each.cell.name] = "ended at once"
    return reasons | {entry.cell.name: "not begun: the study was interrupted" for entry in waiting}


def _end(each: _Running, folder: StudyFolder) -> str | None:
    """Say how it ended; gives the reason where it didn't finish."""
    name, seconds = each.cell.name, time.monotonic() - each.began
    reason = why_unfinished(folder, name, each.wall, each.handle.begins_at)
    print(f"{name}: {f'not finished: {reason}' if reason else f'finished in {duration(seconds)}'}", flush=True)
    return reason


def why_unfinished(folder: StudyFolder, name: str, began: float = 0.0, log_begins_at: int = 0) -> str | None:
    """Why a cell's run isn't finished, None where it is.

    Args:
        folder: Of the study.
        name: Of the cell.
        began: When it was started, seconds since 1970; a status that is older says nothing of it.
        log_begins_at: Where its output begins in its log.
    """
    status = RunFolder(folder.run(name)).status()
    if status.get("state") == "finished":
        return None
    if status.get("time", 0.0) >= began and status.get("state") in ("preempted", "failed"):
        return f"{status['state']}: {status['reason']}"
    log = folder.log(name)
    said = last_words(log, log_begins_at) if log.exists() else "it was not begun"
    return (
        f"killed after step {status['step']}: {said}" if status.get("time", 0.0) >= began and "step" in status else said
    )


def _tell(each: _Running, folder: StudyFolder) -> None:
    run = RunFolder(folder.run(each.cell.name))
    total, records = run.status().get("total_steps"), run.records()
    at = f"step {records[-1]['step']} of {total}" if records and total else "no step yet"
    print(f"{each.cell.name}: {at}, {duration(time.monotonic() - each.began)}", flush=True)
