"""A folder that is there whole or not at all, whatever ends the process that writes it."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from datasets_shards.errors import InputError
from datasets_shards.staging import must_be_new, staged
from tests.unit.disk import largest_file


def anything(out: Path) -> None:
    """Whatever is there may be replaced."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "mlflow.db")


def write_for_ever(folder: Path) -> None:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "growing").write_text(str(time.time()))


def killed_while_writing(out: Path) -> None:
    with staged(out, anything) as folder:
        (folder / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with staged(out) as folder:
        (folder / "file").write_text("content")
        assert not out.exists()
        assert folder.parent == out.parent
        assert folder.name.startswith(".")
    assert (out / "file").read_text() == "content"
    assert names(out.parent) == ["out"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert out.stat().st_mode == plain.stat().st_mode  # not private


def test_an_empty_folder_is_as_good_as_none_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with staged(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert names(tmp_path) == ["link", "out"]
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "out") == ["file"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for error in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(error), staged(tmp_path / "made" / "for" / "it") as folder:  # noqa: PT012
            (folder / "file").touch()
            raise error
        assert names(tmp_path) == []
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(ValueError, match="mine"), staged(out, anything):
        raise ValueError("mine")
    assert names(tmp_path) == ["out"]
    assert names(out) == ["old"]


def test_the_old_folder_comes_back_where_the_new_one_gets_no_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(FileNotFoundError), staged(out, anything) as folder:
        folder.rmdir()  # as somebody may who cleans up by hand
    assert names(tmp_path) == ["out"]
    assert names(out) == ["old"]


def test_what_is_there_is_looked_at_again_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="isn't empty"), staged(out):  # noqa: PT012
        out.mkdir()
        (out / "mine").touch()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["mine"]


def test_leftovers_of_a_killed_call_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = multiprocessing.get_context("spawn").Process(target=killed_while_writing, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert ".out.part" in names(tmp_path)
    with staged(out) as folder:
        assert names(folder) == []
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("there", ["nothing", "empty", "new"])
def test_killed_between_two_names(tmp_path: Path, there: str) -> None:
    """The old folder had stepped aside: it comes back where it is the only one, before anything else is done."""
    out, old = tmp_path / "out", tmp_path / ".out.old"
    old.mkdir()
    (old / "report").write_text("old")
    if there != "nothing":
        out.mkdir()
    if there == "new":
        (out / "report").write_text("new")
    with pytest.raises(ValueError, match="mine"), staged(out, anything):
        raise ValueError("mine")
    assert names(tmp_path) == ["out"]
    assert (out / "report").read_text() == ("new" if there == "new" else "old")


def test_what_comes_back_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "report").touch()
    with pytest.raises(InputError, match="isn't empty"), staged(tmp_path / "out", must_be_new):
        pytest.fail("nothing may be written")
    assert names(tmp_path) == ["out"]


def test_one_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as folder:
        (folder / "file").touch()
        with pytest.raises(InputError, match=f"--out {out}: another process is writing this folder"), staged(out):
            pytest.fail("two at once")
        assert names(folder) == ["file"]
    assert names(tmp_path) == ["out"]


def test_without_locks_nothing_of_another_process_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)  # as on a network file system that was mounted so
    out, part, old = (tmp_path / name for name in ("out", ".out.part", ".out.old"))
    for path, remedy in ((part, "delete it"), (old, "rename it to out")):
        path.mkdir()
        with pytest.raises(InputError, match=f"{path.name}: a killed call left it, .* {remedy}"), staged(out):
            pytest.fail("it may be in use")
        assert names(tmp_path) == [path.name]
        path.rmdir()
    with staged(out) as folder:
        (folder / "file").touch()
    assert names(tmp_path) == ["out"]


def test_mount_points_are_refused() -> None:
    for out in ("/", "/proc"):
        if os.path.ismount(out):
            with pytest.raises(InputError, match=f"--out {out}: is a mount point, .*; give a folder inside it"):
                staged(Path(out), anything).__enter__()


def test_a_full_disk_names_the_flag(tmp_path: Path) -> None:
    with (
        largest_file(1000),
        pytest.raises(InputError, match=r"--out .*/out: file too large; nothing was left there, raise the limit"),
        staged(tmp_path / "out") as folder,
    ):
        (folder / "file").write_bytes(bytes(2000))
    assert names(tmp_path) == []
    with (
        pytest.raises(InputError, match="no space left on device; nothing was left there, free some or choose another"),
        staged(tmp_path / "out"),
    ):
        Path("/dev/full").write_text("x")
    assert names(tmp_path) == []


def test_processes_are_ended_before_their_folder_goes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), staged(tmp_path / "out") as folder:  # noqa: PT012
        growing = folder / "in" / "it"
        process = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(growing,), daemon=True)
        process.start()
        while not (growing / "growing").exists():
            time.sleep(0.01)
        raise ValueError("mine")
    assert not process.is_alive()
    assert names(tmp_path) == []
