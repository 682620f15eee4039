"""How long trainings will take of which none like them was timed yet: by the first steps of one of each kind."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median

from datasets_shards.schema import ShardSetError
from fdtrain.config import UserError
from fdtrain.data.run_data import RunData, open_data
from fdtrain.run_folder import LEAVE_S, RunFolder
from launch.pace import scoring_seconds, settings_to_try
from launch.study.folder import StudyFolder
from launch.study.grid import Cell
from launch.study.interrupt import Interrupt
from launch.study.plan import Entry
from launch.study.process import last_words
from launch.study.timing import duration, is_like, note_tried
from launch.study.trainings import Handle, Runner

STEPS = 12
"""Of the training that is tried. The first half, where loaders and kernels warm up, doesn't count for the rest."""
START_S = 180.0
"""Without two steps by then, there is no estimate."""
PHASE_S = 20.0
"""How long the other steps, the validation, and what follows it are waited for; otherwise they are computed."""


def try_kinds(entries: Sequence[Entry], folder: StudyFolder, runner: Runner, interrupt: Interrupt) -> bool:
    """Time some steps of one training of each kind for which nothing tells how long it takes, and note that down.

    Args:
        entries: As of `plan.look`.
        folder: Of the study, claimed.
        runner: What runs the trainings; these run in the first of its slots, one after another.
        interrupt: Asked all the time.

    Returns:
        Whether there was something to try.
    """
    unknown = [entry.cell for entry in entries if entry.state != "finished" and entry.expected_s is None]
    tried = bool(unknown)
    while unknown and not interrupt.requested:
        cell = unknown[0]
        print(f"{cell.name}: some steps are tried, for the time it takes", flush=True)
        try:
            seconds = _try(cell, folder, runner, interrupt)
        except (UserError, ShardSetError) as error:
            print(f"{cell.name}: not known how long it takes: {error}", flush=True)
        else:
            if seconds is not None:
                note_tried(cell, seconds, folder)
                print(f"{cell.name}: about {duration(seconds)}", flush=True)
        unknown = [other for other in unknown if not is_like(other, cell)]
    return tried


def _try(cell: Cell, folder: StudyFolder, runner: Runner, interrupt: Interrupt) -> float | None:
    """Seconds of the whole training; None where that was interrupted. Raises UserError: it ends before it has steps."""
    data = open_data(cell.config)
    place = StudyFolder(folder.path / ".study" / "tried", folder.name)
    shutil.rmtree(place.path, ignore_errors=True)  # of a study that was killed: it would be gone on with
    try:
        with place.claim():
            return _time(cell, data, place, runner, interrupt)
    finally:
        shutil.rmtree(place.path, ignore_errors=True)


def _time(cell: Cell, data: RunData, place: StudyFolder, runner: Runner, interrupt: Interrupt) -> float | None:
    train, per_epoch = cell.config.train, data.plan.steps_per_epoch
    total = min(train.epochs * per_epoch, train.max_steps or train.epochs * per_epoch)
    run = RunFolder(place.run(cell.name))
    handle = runner.start(replace(cell, words=words_to_try(cell, min(STEPS, total))), 0, place)
    try:
        phases = list(_phases(handle, run, min(STEPS, total), interrupt))
        if interrupt.requested:
            return None
        if handle.poll():
            raise UserError(last_words(place.log(cell.name), handle.begins_at))
        if not phases:
            raise UserError(f"no steps within {duration(START_S)}")
    finally:
        handle.kill()
        run.wait_until_left(LEAVE_S)
    steps = _steps(run)
    each = median(steps[len(steps) // 2 :])
    start, _, *measured = phases + [0.0] * (len(phases) < 2)
    scored = [scoring_seconds(len(data.rows[split]), train.global_batch_size / each) for split in ("val", "test")]
    validation, end = [*measured, *scored[len(measured) :]]
    seconds = start + max(total - 2, 0) * each + -(-total // per_epoch) * validation + end
    return seconds if train.max_minutes is None else min(seconds, 60 * train.max_minutes)


def words_to_try(cell: Cell, steps: int) -> tuple[str, ...]:
    """A training of a cell that ends after some steps."""
    settings = settings_to_try(cell.config, steps)
    return (*cell.words, *(word for key, value in settings.items() for word in (f"--{key}", json.dumps(value))))


def _phases(handle: Handle, run: RunFolder, count: int, interrupt: Interrupt) -> Iterator[float]:
    """Seconds up to the second step, of the others, of the validation, and of what follows, as far as they are seen."""
    reached: tuple[Callable[[], bool], ...] = (
        lambda: len(_steps(run)) >= min(2, count),
        lambda: len(_steps(run)) >= count,
        lambda: any("val/frame/auc" in record and record["step"] >= count for record in run.records()),
        lambda: handle.poll() == 0,
    )
    began = time.monotonic()
    for number, is_reached in enumerate(reached):
        limit = PHASE_S if number else START_S
        while not is_reached():
            is_over = handle.poll() is not None and not is_reached()  # it may have written its last in between
            if is_over or interrupt.requested or time.monotonic() - began > limit:
                return
            time.sleep(0.1)
        now = time.monotonic()
        yield now - began
        began = now


def _steps(run: RunFolder) -> list[float]:
    """Seconds of each step so far."""
    return [record["train/time/step"] for record in run.records() if "train/time/step" in record]
