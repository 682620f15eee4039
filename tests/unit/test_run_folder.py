"""The run folder: one run at a time, nothing overwritten unasked, a log that a resume can rewind."""

import fcntl
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fdtrain.config import UserError
from fdtrain.journal import Journal
from fdtrain.run_folder import RunFolder


def test_two_runs_into_one_folder_are_refused(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.claim(resume=False)
    with pytest.raises(UserError, match="is in use by another run"):
        second.claim(resume=True)
    first.release()
    second.claim(resume=False)


def test_a_folder_that_was_there_or_that_trained_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for run in (RunFolder(tmp_path / "there"), RunFolder(tmp_path / "new")):
        run.claim(resume=False)
        if run.path.name == "new":
            run.begin(resumed=False)
        run.release()
        assert run.path.is_dir()


def test_whoever_waits_for_a_lock_that_is_removed_takes_another(tmp_path: Path) -> None:
    """As two that begin at once may, the first of which has a mistyped setting."""
    first, run = RunFolder(tmp_path / "runs/new"), RunFolder(tmp_path / "runs/new")
    first.claim(resume=False)
    lock = fcntl.flock

    def lock_once_the_first_has_gone(descriptor: int, how: int) -> None:
        first.release()
        lock(descriptor, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", lock_once_the_first_has_gone)
        run.claim(resume=False)
    assert RunFolder(run.path).is_in_use()


def test_whether_a_folder_is_in_use(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert not run.is_in_use()  # nor is it there
    assert not run.path.exists()
    run.claim(resume=False)
    assert RunFolder(run.path).is_in_use()
    run.release()
    assert not RunFolder(run.path).is_in_use()


def test_a_folder_that_holds_a_run_needs_resume(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.config.write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"holds a run already; go on with it by --run\.resume auto"):
        run.claim(resume=False)
    run.claim(resume=True)


def test_a_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run\.dir: .*file can't be written"):
        RunFolder(tmp_path / "file").claim(resume=False)


def test_rewinding_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (10, 20, 30):
        run.log(step=step, loss=1.0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    run.rewind_log(20)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [10, 20]


def test_status_is_whole_json(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.status() == {}
    run.write_status("failed", "the reason", step=3)
    assert run.status()["state"] == "failed"
    assert run.status()["reason"] == "the reason"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_the_time_of_a_run_is_that_of_all_its_starts(tmp_path: Path) -> None:
    first = RunFolder(tmp_path, time.monotonic() - 100)
    first.begin(resumed=False)
    first.write_status("preempted", "SIGTERM", step=3)
    second = RunFolder(tmp_path, time.monotonic() - 50)
    assert second.seconds == pytest.approx(100, abs=5)
    second.begin(resumed=True)
    second.write_status("finished", step=8)
    assert second.status()["seconds"] == pytest.approx(150, abs=5)

    RunFolder(tmp_path).write_status("finished", step=8, registered="models:/meso4/1")  # which is not to train
    assert RunFolder(tmp_path).seconds == second.status()["seconds"]
    anew = RunFolder(tmp_path, time.monotonic() - 10)
    anew.begin(resumed=False)
    assert anew.seconds == pytest.approx(10, abs=5)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes; more is refused, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_half_line_and_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path)
    journal = Journal(run, is_main=True)
    journal.log(1, {"train/loss": 1.0})
    with largest_file((tmp_path / "log.jsonl").stat().st_size + 10):
        journal.log(2, {"train/loss": 1.0})
        journal.log(3, {"train/loss": 1.0})
    journal.log(4, {"train/loss": 1.0})
    assert [record["step"] for record in run.records()] == [1, 4]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"warning: {tmp_path}: ")
    assert "the records lack step 2, and what comes until there is room again" in said[0]


def test_a_warning_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(RunFolder(tmp_path), is_main=True)
    for line in ("3 groups", "3 groups", "2 groups"):
        journal.warn(line)
    assert capsys.readouterr().out == "warning: 3 groups\nwarning: 2 groups\n"


def test_the_reason_of_a_failure_is_not_lost_on_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path)
    run.begin(resumed=False)
    run.write_status("running", step=3)
    with largest_file(10), pytest.raises(ValueError, match="the fault itself"), run.failing(is_main=True):
        raise ValueError("the fault itself")
    assert "status.json still says how the run stood before" in capsys.readouterr().err
    assert run.status()["state"] == "running"


def test_what_a_killed_run_left_is_not_running_once_another_start_has_failed(tmp_path: Path) -> None:
    for before, after in (("running", "failed"), ("finished", "finished"), ("preempted", "preempted")):
        run = RunFolder(tmp_path)
        run.write_status(before)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no checkpoint is whole"), run.failing(is_main=True):
            raise ValueError("no checkpoint is whole")
        assert run.status()["state"] == after
