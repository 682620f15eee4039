"""`python -m fdtrain predict` in processes: workers give what one process gives, and whoever stops it finds nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fdtrain.cli import main
from fdtrain.models import InputSpec, create_model, save_model
from fdtrain.predict.tables import frames_path
from tests.conftest import REPOSITORY, run_python
from tests.heads import with_large_heads
from tests.unit.conftest import face_video


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    state = with_large_heads(create_model("meso4")).state_dict()
    save_model(folder, state, name="meso4", options={}, spec=InputSpec(256), facts={})
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        face_video(folder / f"{number}.mp4", number)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def test_workers_change_nothing(model: Path, videos: Path, tmp_path: Path) -> None:
    """Order, faces and errors, as of one process; the scores but for how many threads add up."""
    words = ["predict", "--model", str(model), "--upsample", "0", "--frames-per-video", "2", str(videos), "--workers"]
    alone, together = tmp_path / "alone.parquet", tmp_path / "together.parquet"
    assert main([*words, "1", "--out", str(alone)]) == 0
    done = run_python("-m", "fdtrain", *words, 2, "--out", together)
    assert done.returncode == 0, done.stderr
    assert "scored 4 of 5 files, 8 frames" in done.stdout
    assert "by the packer's defaults" in done.stdout
    for first, second in ((alone, together), (frames_path(alone), frames_path(together))):
        one, two = pq.read_table(first), pq.read_table(second)
        assert one.drop(["score"]).equals(two.drop(["score"]))
        assert one["score"].to_pylist() == pytest.approx(two["score"].to_pylist(), abs=1e-5)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whoever_stops_it_finds_nothing(
    model: Path, videos: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").mkdir()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path / "scratch")}
    # Enlarged that often each video takes long enough to be met at work.
    words = ["--out", f"{tmp_path}/out/s.csv", "--workers", "2", "--upsample", "3", "--frames-per-video", "all"]
    line = [sys.executable, "-m", "fdtrain", "predict", "--model", str(model), *words, str(videos)]
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not any((tmp_path / "out").iterdir()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code
    expected = ["python -m fdtrain predict: error: interrupted"] if number == signal.SIGINT else []
    assert errors.splitlines() == expected
    assert not list((tmp_path / "out").iterdir())
    assert not list((tmp_path / "scratch").iterdir())
