"""A study from its plan to its report."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from datasets_shards.schema import ShardSetError
from fdtrain.config import UserError
from fdtrain.tracking import tracking_uri
from fdtrain.tracking.parents import close_parent_run, log_to_parent_run, open_parent_run
from launch.study.array import SlurmArray, ranks_of_jobs, trainings
from launch.study.estimate import try_kinds
from launch.study.folder import StudyFolder
from launch.study.grid import Cell, cells_of
from launch.study.interrupt import Interrupt
from launch.study.local import Local
from launch.study.plan import Entry, describe, look, missing_data, outlook
from launch.study.settings import Call, RunnerPart, Study
from launch.study.steps import Step, do, evaluation_steps, report_step
from launch.study.summary import matrix_text, record_of, table
from launch.study.trainings import Runner, train_all, why_unfinished


def run_study(call: Call) -> int:
    """Do what of a study isn't done.

    Returns:
        The exit code: 0 where all is done (or in Slurm's hands), 1 where something is missing, 128 + the signal where
        one came.

    Raises:
        UserError: something is wrong with the study, before anything was started.
        ShardSetError: a shard set that it needs isn't there.
        HostError: Ray or Slurm can't be reached.
    """
    study = call.study
    host = Local.of(study.runner if study.runner.kind == "torchrun" else RunnerPart())
    cells = cells_of(study, call.overrides, _ranks(study.runner, host))
    folder = StudyFolder(study.folder, study.name, study.study.runs)
    entries, array = _look(call, cells, folder)
    is_over = all(entry.state == "finished" for entry in entries)
    try:
        missing_data(study, entries)
    except (UserError, ShardSetError) as error:
        if not call.dry_run:
            raise
        print(f"warning: {error}", file=sys.stderr)
    with _runner(study.runner, host, is_over) as runner:
        parallel = runner.parallel if runner else None
        told = runner.describe() if runner else "a Slurm array"
        print(describe(study, folder, entries, told), flush=True)
        print(outlook(entries, parallel), flush=True)
        if call.dry_run:
            return 0
        with folder.claim(), Interrupt() as interrupt:
            entries, array = _look(call, cells, folder)  # again: another call may have ended meanwhile
            for name in call.restart:
                if aside := folder.set_aside(name):
                    print(f"{name}: its run is now {aside}", flush=True)
            if runner and study.runner.calibrate and try_kinds(entries, folder, runner, interrupt):
                entries = look(cells, folder)
                print(outlook(entries, parallel), flush=True)
            return _Work(study, folder, cells, host, interrupt).do(entries, runner or array, call)


def _look(call: Call, cells: Sequence[Cell], folder: StudyFolder) -> tuple[list[Entry], SlurmArray]:
    """How far the cells are, and the array that the study submitted last."""
    array = SlurmArray(folder)
    waiting = array.under_way()
    if both := [name for name in call.restart if name in waiting]:
        raise UserError(f"restart: {both[0]} is under way in Slurm's job {array.job}; scancel that first")
    if waiting and call.study.runner.kind != "slurm" and not call.dry_run:
        raise UserError(
            f"runner.kind: {waiting[0]} is under way in Slurm's job {array.job}; let that end, or scancel it first"
        )
    entries = look(cells, folder, call.restart)
    told = f"in Slurm's job {array.job}"
    return [replace(entry, told=told) if entry.cell.name in waiting else entry for entry in entries], array


def _ranks(runner: RunnerPart, host: Local) -> int:
    """Processes of each training."""
    return {"torchrun": host.ranks, "ray": runner.ranks or 1}.get(runner.kind) or ranks_of_jobs()


@contextmanager
def _runner(runner: RunnerPart, host: Local, is_over: bool) -> Iterator[Runner | None]:
    """What runs the trainings; None where that is Slurm. Ray is only asked where there is something to run."""
    if runner.kind == "ray" and not is_over:
        from launch.study.cluster import RayCluster

        cluster = RayCluster(runner)
        try:
            yield cluster
        finally:
            cluster.close()
    else:
        yield None if runner.kind == "slurm" else host


@dataclass(frozen=True)
class _Work:
    study: Study
    folder: StudyFolder
    cells: Sequence[Cell]
    host: Local
    interrupt: Interrupt

    def do(self, entries: Sequence[Entry], runner: Runner | SlurmArray, call: Call) -> int:
        """Trainings, evaluations, report, summary."""
        todo = [_with_parent(entry, self.study.name) for entry in entries if entry.state != "finished"]
        if not todo and all(step.is_done(self.folder) for step in self._steps({})):
            print(f"study {self.study.name}: finished already; nothing to do")
            self._say_end({}, {})
            return 0
        records = self._open_record()
        if isinstance(runner, SlurmArray) and not self._is_collectable(todo, runner, call):
            return 128 + self.interrupt.requested if self.interrupt.requested else 0
        reasons: dict[str, str] = {}
        failed: dict[str, str] = {}
        status = "FAILED"
        try:
            if isinstance(runner, SlurmArray):
                names = [entry.cell.name for entry in todo]
                reasons = {name: reason for name in names if (reason := why_unfinished(self.folder, name))}
            else:
                reasons = train_all(todo, self.folder, runner, self.interrupt)
            if not self.interrupt.requested:
                failed = do(self._evaluations(reasons), self.folder, self.host.environment(), self.interrupt)
                failed |= do(self._report(reasons), self.folder, self.host.environment(), self.interrupt)
            status = "KILLED" if self.interrupt.requested else "FAILED" if reasons or failed else "FINISHED"
        finally:
            self._close_record(records, status)
        self._say_end(reasons, failed)
        if self.interrupt.requested:
            print("interrupted: the same command goes on from here")
            return 128 + self.interrupt.requested
        if reasons or failed:
            print("the same command tries what is missing again")
        return 1 if reasons or failed else 0

    def _is_collectable(self, todo: Sequence[Entry], array: SlurmArray, call: Call) -> bool:
        """Submit what is to be trained, unless an array is under way; whether none is under way.

        What an array that has just ended left undone is not submitted again before its reasons were told.
        """
        told_first = set() if array.is_collected else set(array.cells).difference(call.restart)
        new = [entry for entry in todo if entry.cell.name not in told_first]
        if new and not array.under_way():
            print(f"submitted job {array.submit(new, self.study.name)}: an array of {trainings(len(new))}", flush=True)
        if call.wait:
            array.wait(self.interrupt)
        if names := array.under_way():
            array.save()  # it may have been found in Slurm's queue
            print(
                f"job {array.job}: {trainings(len(names))} under way (squeue --jobs={array.job}); when they have "
                "ended, the same command evaluates and reports, on the host that it is called on"
            )
            return False
        array.mark_collected()
        return True

    def _finished(self, reasons: Mapping[str, str]) -> list[Cell]:
        return [cell for cell in self.cells if cell.name not in reasons]

    def _evaluations(self, reasons: Mapping[str, str]) -> list[Step]:
        return evaluation_steps(self.study, self.folder, self._finished(reasons), self.host.ranks)

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
            f"axis.{key}": names for key, names in axes.items()
        }
        return uri, open_parent_run(uri, tracking.experiment, self.study.name, tags)

    def _close_record(self, records: tuple[str, str | None] | None, status: str) -> None:
        if not records:
            return
        report = self.folder.path / "report"
        if status != "KILLED" and (report / "index.html").exists():
            log_to_parent_run(*records, report, "report")
        close_parent_run(*records, status)

    def _say_end(self, reasons: Mapping[str, str], failed: Mapping[str, str]) -> None:
        print(f"\n{table(self.cells, self.folder, reasons)}\n")
        for step in self._evaluations(reasons):
            if step.out.name == "matrix.parquet" and step.is_done(self.folder):
                print(f"{step.name}: {matrix_text(step.out)}\n")
        page = self.folder.path / "report" / "index.html"
        if page.exists() and "report" not in failed:
            print(f"report       {page}", flush=True)
        for name, reason in {**reasons, **failed}.items():
            print(f"missing      {name}: {reason}", file=sys.stderr)


def _with_parent(entry: Entry, study: str) -> Entry:
    """A training that hangs under the study's MLflow run."""
    cell = entry.cell
    if not cell.config.tracking.enabled:
        return entry
    return replace(entry, cell=replace(cell, words=(*cell.words, "--tracking.parent", study)))
