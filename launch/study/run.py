"""A study from its plan to its report."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fdtrain.tracking import tracking_uri
from fdtrain.tracking.parents import close_parent_run, log_to_parent_run, open_parent_run
from launch.study.folder import StudyFolder
from launch.study.grid import Cell, cells_of
from launch.study.interrupt import Interrupt
from launch.study.local import Local
from launch.study.plan import SECONDS, Entry, describe, look, missing_data
from launch.study.settings import Call, Study
from launch.study.steps import Step, do, evaluation_steps, report_step
from launch.study.summary import record_of, table
from launch.study.trainings import train_all


def run_study(call: Call) -> int:
    """Do what of a study isn't done.

    Returns:
        The exit code: 0 where all is done, 1 where something is missing, 128 + the signal where one came.

    Raises:
        UserError: something is wrong with the study, before anything was started.
        ShardSetError: a shard set that it needs isn't there.
    """
    study = call.study
    local = Local.of(study.runner)
    cells = cells_of(study, call.overrides, local.ranks)
    folder = StudyFolder(study.folder, study.name, study.study.runs)
    entries = look(cells, folder, call.restart)
    print(describe(study, folder, entries, local.parallel, local.describe()), flush=True)
    if call.dry_run:
        return 0
    missing_data(study, entries)
    with folder.claim(), Interrupt() as interrupt:
        for name in call.restart:
            if aside := folder.set_aside(name):
                print(f"{name}: its run is now {aside}", flush=True)
                folder.write_note(SECONDS, {key: value for key, value in folder.note(SECONDS).items() if key != name})
        return _Work(study, folder, cells, local, interrupt).do(entries)


@dataclass(frozen=True)
class _Work:
    study: Study
    folder: StudyFolder
    cells: Sequence[Cell]
    local: Local
    interrupt: Interrupt

    def do(self, entries: Sequence[Entry]) -> int:
        """Trainings, evaluations, report, summary."""
        todo = [_with_parent(entry, self.study.name) for entry in entries if entry.state != "finished"]
        if not todo and all(step.is_done(self.folder) for step in self._steps({})):
            print(f"study {self.study.name}: finished already; nothing to do")
            self._say_end({}, {})
            return 0
        records = self._open_record()
        reasons: dict[str, str] = {}
        failed: dict[str, str] = {}
        status = "FAILED"
        try:
            reasons = train_all(todo, self.folder, self._start, self.local.parallel, self.interrupt)
            if not self.interrupt.requested:
                failed = do(self._evaluations(reasons), self.folder, self.local.environment(), self.interrupt)
                failed |= do(self._report(reasons), self.folder, self.local.environment(), self.interrupt)
            status = "KILLED" if self.interrupt.requested else "FAILED" if reasons or failed else "FINISHED"
        finally:
            if records:
                uri, run_id = records
                if status != "KILLED" and (self.folder.path / "report" / "index.html").exists():
                    log_to_parent_run(uri, run_id, self.folder.path / "report", "report")
                close_parent_run(uri, run_id, status)
        self._say_end(reasons, failed)
        if self.interrupt.requested:
            print("interrupted: the same command goes on from here")
            return 128 + self.interrupt.requested
        return 1 if reasons or failed else 0

    def _start(self, cell: Cell, slot: int):  # type: ignore[no-untyped-def]
        return self.local.start(cell, slot, self.folder)

    def _finished(self, reasons: Mapping[str, str]) -> list[Cell]:
        return [cell for cell in self.cells if cell.name not in reasons]

    def _evaluations(self, reasons: Mapping[str, str]) -> list[Step]:
        return evaluation_steps(self.study, self.folder, self._finished(reasons), self.local.ranks)

    def _report(self, reasons: Mapping[str, str]) -> list[Step]:
        record = self.folder.write_record(record_of(self.study, self.cells, self.folder, reasons))
        finished = self._finished(reasons)
        return [report_step(self.study, self.folder, finished, self._evaluations(reasons), record)] if finished else []

    def _steps(self, reasons: Mapping[str, str]) -> list[Step]:
        return [*self._evaluations(reasons), *self._report(reasons)]

    def _open_record(self) -> tuple[str, str | None] | None:
        """MLflow's run of the study, where its trainings are recorded there."""
        tracking = self.cells[0].config.tracking
        if not tracking.enabled:
            return None
        uri = tracking_uri(tracking.uri)
        axes = {axis: ", ".join(dict.fromkeys(cell.place[axis] for cell in self.cells)) for axis in self.cells[0].place}
        tags = {"fdtrain.folder": str(self.folder.path.resolve())} | {
            f"axis.{key}": value for key, value in axes.items()
        }
        return uri, open_parent_run(uri, tracking.experiment, self.study.name, tags)

    def _say_end(self, reasons: Mapping[str, str], failed: Mapping[str, str]) -> None:
        print(f"\n{table(self.cells, self.folder, reasons)}\n")
        page = self.folder.path / "report" / "index.html"
        if page.exists() and "report" not in failed:
            print(f"report       {page}")
        for name, reason in {**reasons, **failed}.items():
            print(f"missing      {name}: {reason}", file=sys.stderr)


def _with_parent(entry: Entry, study: str) -> Entry:
    """A training that hangs under the study's MLflow run."""
    cell = entry.cell
    if not cell.config.tracking.enabled:
        return entry
    return replace(entry, cell=replace(cell, words=(*cell.words, "--tracking.parent", study)))
