"""The run folder: one run at a time, nothing overwritten unasked, a log that a resume can rewind."""

import json
import time
from pathlib import Path

import pytest

from fdtrain.config import UserError
from fdtrain.run_folder import RunFolder


def test_two_runs_into_one_folder_are_refused(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.claim(resume=False)
    with pytest.raises(UserError, match="is in use by another run"):
        second.claim(resume=True)
    first.release()
    second.claim(resume=False)


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
