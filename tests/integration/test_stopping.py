"""A run that is told to stop saves, says so in status.json, and goes on later as if it had never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, torchrun
from tests.integration.test_resume import STEPS, last_step, losses_of, processes_of, training


def status_of(run: Path) -> dict:
    return json.loads((run / "status.json").read_bytes())


def start(words: list[str], ranks: int | None) -> subprocess.Popen[str]:
    """A training in a process group of its own, as a terminal would have it."""
    launcher = (
        ["-m"] if ranks is None else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, *launcher, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(step: int, run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while last_step(run) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(shard_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = torchrun(2, *training(shard_root, run, optim__name="adam"))
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGUSR1, "one worker"),
        (signal.SIGTERM, "torchrun"),
        (signal.SIGINT, "everybody"),
    ],
)
def test_a_signal_stops_all_ranks_after_the_same_step(
    shard_root: Path, tmp_path: Path, undisturbed: Path, number: signal.Signals, whom: str
) -> None:
    run = tmp_path / "run"
    words = training(shard_root, run, optim__name="adam")
    with start(words, 2) as process:
        wait_for_step(4, run, process)
        workers = [pid for pid in processes_of(run) if pid != process.pid]
        if whom == "one worker":
            os.kill(workers[-1], number)
        elif whom == "torchrun":
            process.send_signal(number)
        else:  # Ctrl-C in a terminal
            os.killpg(process.pid, number)
        output = process.communicate(timeout=60)[0]
    assert processes_of(run) == []
    status = status_of(run)
    assert status["state"] == "preempted", output
    assert status["reason"] == number.name
    assert 4 <= status["step"] < STEPS
    assert (run / "checkpoints" / f"step-{status['step']:08d}" / "checkpoint.json").exists()
    if whom == "one worker":
        assert process.returncode == 0, output  # or torchrun would start it again
    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr
    assert f"resumed after step {status['step']}" in done.stdout
    assert status_of(run)["state"] == "finished"
    assert losses_of(run) == losses_of(undisturbed)
    last = f"checkpoints/step-{STEPS:08d}"
    for name in (f"{last}/model.safetensors", f"{last}/training.pt", "metrics.json", "predictions/test.parquet"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_ctrl_c_on_a_single_process_saves_too(shard_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start(training(shard_root, run, train__max_steps=100_000, train__epochs=100_000), None) as process:
        wait_for_step(2, run, process)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "interrupted; --run.resume auto goes on from the last checkpoint" in output
    assert status_of(run)["state"] == "preempted"


def test_the_time_given_is_kept(shard_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = training(shard_root, run, train__max_steps=100_000, train__epochs=100_000, train__max_minutes=0.25)
    began = time.monotonic()
    done = torchrun(1, *words)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 15 + 45  # a busy machine takes its time to import and to end
    status = status_of(run)
    assert status["state"] == "preempted"
    assert status["reason"] == "train.max_minutes are over"
    assert status["step"] > 0
