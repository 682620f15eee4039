"""A face stage that is stopped goes on where it was, and ends with the same file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from datasets_shards.errors import InputError
from datasets_shards.faces import stage
from datasets_shards.faces.detector import FaceSettings
from datasets_shards.faces.journal import journal_path, open_journal
from datasets_shards.faces.stage import detect_faces
from datasets_shards.faces.table import FaceTable
from datasets_shards.sources import Video, find_videos
from tests.conftest import REPOSITORY
from tests.unit.conftest import face_video

SETTINGS = FaceSettings(frames_per_video=1)
FLAGS = ("--frames-per-video", 1)


@pytest.fixture(scope="module")
def whole(ff_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a stage that nobody disturbed."""
    path = tmp_path_factory.mktemp("whole") / "faces.parquet"
    detect_faces(find_videos(ff_tree), SETTINGS, path, workers=1)
    return path


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the videos that the stage, in this process, looks at."""
    paths: list[str] = []
    detect = stage.detect_video

    def note(video: Video, settings: FaceSettings) -> list[dict[str, Any]]:
        paths.append(video.relative)
        return detect(video, settings)

    monkeypatch.setattr(stage, "detect_video", note)
    return paths


def stopped_after(count: int) -> Callable[..., Iterable[Any]]:
    """A bar that is interrupted after `count` videos."""

    def bar(results: Iterable[Any], **_: int) -> Iterable[Any]:
        for number, rows in enumerate(results):
            if number == count:
                raise KeyboardInterrupt
            yield rows

    return bar


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_stage_goes_on(ff_tree: Path, whole: Path, tmp_path: Path, looked_at, accept, how: int) -> None:
    table = tmp_path / "faces.parquet"
    words = ["faces", "--source", ff_tree, "--out", table, *FLAGS]
    command = [sys.executable, "-m", "datasets_shards", *map(str, words), "--workers", "1"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    journal = journal_path(table)
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):  # at work, three videos done
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(how)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(how, -how)
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == [journal.name]
    done = journal.read_bytes().count(b"\n") - 1
    assert 3 <= done < 18

    assert f"continuing: {done} of 18 videos are done" in accept(*words)
    assert looked_at == [video.relative for video in find_videos(ff_tree)][done:]
    assert table.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [table.name]


@pytest.mark.parametrize("damage", [b'{"video":{"path":"x","byt', b"\0\0\0\n{}\n", b'{"video":{}}\n'])
def test_a_line_cut_short_is_dropped(ff_tree: Path, whole: Path, tmp_path: Path, looked_at, damage: bytes) -> None:
    videos, table = find_videos(ff_tree), tmp_path / "faces.parquet"
    with pytest.raises(KeyboardInterrupt):
        detect_faces(videos, SETTINGS, table, 1, stopped_after(4))
    with journal_path(table).open("ab") as file:
        file.write(damage)
    looked_at.clear()
    detect_faces(videos, SETTINGS, table, 1, stopped_after(100))
    assert looked_at == [video.relative for video in videos[4:]]
    assert table.read_bytes() == whole.read_bytes()


def test_only_what_is_new_or_changed_is_looked_at(tmp_path: Path, looked_at: list[str]) -> None:
    def videos() -> list[Video]:
        paths = sorted(tmp_path.glob("*.mp4"))
        return [Video("youtube", path.stem, path.stem, "", "raw", path, path.name) for path in paths]

    lines: list[str] = []

    def run(path: Path) -> FaceTable:
        looked_at.clear()
        lines.clear()
        return detect_faces(videos(), SETTINGS, path, 1, tell=lines.append)

    table = tmp_path / "faces.parquet"
    face_video(tmp_path / "001.mp4", 0)
    face_video(tmp_path / "003.mp4", 1)
    run(table)
    assert run(table).status_counts() == {"ok": 2}
    assert lines == [f"nothing to do: {table} has all 2 videos"]
    assert not journal_path(table).exists()
    (tmp_path / "002.mp4").touch()  # and never readable
    shutil.copy(tmp_path / "001.mp4", tmp_path / "003.mp4")
    (tmp_path / "003.mp4").open("ab").write(b"x" * 100)
    run(table)
    assert (looked_at, lines) == (["002.mp4", "003.mp4"], ["continuing: 1 of 3 videos are done"])
    run(tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == table.read_bytes()
    run(table)
    assert looked_at == ["002.mp4"]


def test_a_video_that_was_on_its_way_is_looked_at_again(tmp_path: Path, looked_at: list[str]) -> None:
    """Files that have their size beforehand: what couldn't be read, and what has another content since."""
    whole = face_video(tmp_path / "whole" / "000.mp4", 0).read_bytes()
    names = ["early.mp4", "later.mp4"]
    videos = [Video("youtube", name[:-4], name[:-4], "", "raw", tmp_path / name, name) for name in names]
    table = tmp_path / "faces.parquet"
    (tmp_path / "early.mp4").write_bytes(bytes(len(whole)))
    (tmp_path / "later.mp4").write_bytes(whole)
    assert detect_faces(videos, SETTINGS, table, 1).status_counts() == {"ok": 1, "unreadable video": 1}
    looked_at.clear()
    (tmp_path / "early.mp4").write_bytes(whole)
    os.utime(tmp_path / "early.mp4", (0, 0))  # as rsync and others set it
    (tmp_path / "later.mp4").touch()
    assert detect_faces(videos, SETTINGS, table, 1).status_counts() == {"ok": 2}
    assert looked_at == ["early.mp4"]
    other = face_video(tmp_path / "whole" / "001.mp4", 3).read_bytes()
    (tmp_path / "later.mp4").write_bytes((other + bytes(len(whole)))[: len(whole)])
    looked_at.clear()
    detect_faces(videos, SETTINGS, table, 1)
    assert looked_at == ["later.mp4"]


def test_other_settings_are_refused(ff_tree: Path, whole: Path, tmp_path: Path, reject) -> None:
    table = tmp_path / "faces.parquet"
    words = ("faces", "--source", ff_tree, "--out", table, *FLAGS)
    with pytest.raises(KeyboardInterrupt):
        detect_faces(find_videos(ff_tree), SETTINGS, table, 1, stopped_after(1))
    line = reject(1, *words, "--min-face", 30)
    assert "a face stage with other settings wasn't finished (min_face 48 there, 30 here)" in line
    assert line.endswith(f"or delete {journal_path(table)}")
    assert "aren't selected now" in reject(1, *words, "--methods", "FaceSwap")
    journal_path(table).write_text(json.dumps({"format": "other"}) + "\n")
    assert "not a journal of the face stage; delete it" in reject(1, *words)
    journal_path(table).unlink()
    shutil.copy(whole, table)
    line = reject(1, "faces", "--source", ff_tree, "--out", table, "--every", 2)
    assert "made with other settings (frames_per_video 1 there, none here, every none there, 2 here)" in line
    assert table.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [table.name]


def test_two_processes_do_not_meet(ff_tree: Path, tmp_path: Path) -> None:
    table = tmp_path / "faces.parquet"
    with open_journal(table, {}), pytest.raises(InputError, match="another process is writing this table"):
        detect_faces(find_videos(ff_tree), SETTINGS, table, 1)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_what_is_done(ff_tree: Path, tmp_path: Path, monkeypatch, reject) -> None:
    def full(path: Path) -> None:
        raise OSError(28, os.strerror(28))

    table = tmp_path / "faces.parquet"
    with monkeypatch.context() as patch:
        patch.setattr("datasets_shards.schema.sync_path", full)
        words = ("faces", "--source", ff_tree, "--out", table, *FLAGS, "--methods", "youtube", "--workers", 1)
        assert "No space left on device" in reject(1, *words)
    assert [path.name for path in tmp_path.iterdir()] == [journal_path(table).name]
