"""A run that is told to stop saves, says so in status.json, and goes on later as if it had never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_python, torchrun
from tests.integration.test_resume import STEPS, losses_of, processes_of, training, until_step


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
        pytest.param(signal.SIGTERM, "torchrun", marks=pytest.mark.long),
        pytest.param(signal.SIGINT, "everybody", marks=pytest.mark.long),
    ],
)
def test_a_signal_stops_all_ranks_after_the_same_step(
    shard_root: Path, tmp_path: Path, undisturbed: Path, number: signal.Signals, whom: str
) -> None:
    run = tmp_path / "run"
    words = training(shard_root, run, optim__name="adam")
    with start(words, 2) as process:
        until_step(4, run, process)
        workers = [pid for pid in processes_of(run) if pid != process.pid]
        if whom == "one worker":
            os.kill(workers[-1], number)
        elif whom == "torchrun":
            process.send_signal(number)
        else:  # Ctrl-C in a terminal
            os.killpg(process.pid, number)
        output = process.communicate(timeout=300)[0]
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
    assert status_of(run)["seconds"] > status["seconds"] + 1 > 2  # importing torch takes more
    assert losses_of(run) == losses_of(undisturbed)
    last = f"checkpoints/step-{STEPS:08d}"
    for name in (f"{last}/model.safetensors", f"{last}/training.pt", "metrics.json", "predictions/test.parquet"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.long
@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_hangs_or_is_lost_is_said(shard_root: Path, tmp_path: Path, end: signal.Signals) -> None:
    run = tmp_path / "run"
    words = training(shard_root, run, train__max_steps=100_000, train__epochs=100_000, engine__timeout_minutes=0.7)
    with start(words, 2) as process:
        until_step(4, run, process)
        workers = sorted(pid for pid in processes_of(run) if pid != process.pid)  # in the order of their ranks
        os.kill(workers[1], end)
        deadline = time.monotonic() + 300
        while status_of(run)["state"] == "running" and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        if end == signal.SIGSTOP:
            os.kill(workers[1], signal.SIGCONT)
        output = process.communicate(timeout=300)[0]
    assert processes_of(run) == []
    if end == signal.SIGKILL and status_of(run)["state"] == "running":
        return  # torchrun has ended rank 0 before it met that
    assert status_of(run)["state"] == "failed"
    killed = "rank 1 was lost: its process ended without a word"
    hung = "a rank was lost, or didn't answer within engine"
    assert (killed if end == signal.SIGKILL else f"{hung}.timeout_minutes (0.7)") in status_of(run)["reason"]
    if end == signal.SIGSTOP:
        assert "error: rank 0 on " in output
        assert "mend that and go on by --run.resume auto" in output


def test_ctrl_c_on_a_single_process_saves_too(shard_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start(training(shard_root, run, train__max_steps=100_000, train__epochs=100_000), None) as process:
        until_step(2, run, process)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=300)[0]
    assert process.returncode == 130, output
    assert "interrupted; --run.resume auto goes on from the last checkpoint" in output
    assert status_of(run)["state"] == "preempted"


def test_the_time_given_is_kept(shard_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = training(shard_root, run, train__max_steps=100_000, train__epochs=100_000, train__max_minutes=0.25)
    done = torchrun(1, *words)
    assert done.returncode == 0, done.stderr
    status = status_of(run)
    began = (run / "config.yaml").stat().st_mtime  # a moment after the clock was started, when all is imported
    assert status["time"] < began + 15 + 10  # a busy machine takes its time for the last steps and the checkpoint
    assert status["state"] == "preempted"
    assert status["reason"] == "train.max_minutes are over"
    assert status["step"] > 0


STOPPED_WHILE_EVALUATING = """
import os, signal, sys
from torch.nn.modules.module import register_module_forward_hook
from fdtrain.cli import main
from fdtrain.models.mesonet import MesoNet

seen = 0

def tell_rank_1_at_a_batch(module, inputs, output):
    global seen
    if isinstance(module, MesoNet) and not module.training:
        seen += 1
        if seen == int(sys.argv[1]) and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGUSR1)

register_module_forward_hook(tell_rank_1_at_a_batch)
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.long
def test_an_evaluation_is_left_at_once_and_done_first_when_the_run_goes_on(
    shard_root: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """36 samples in batches of 4 are five batches for rank 0 and four for rank 1, in each of four validations."""
    run, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(STOPPED_WHILE_EVALUATING)
    words = training(shard_root, run, optim__name="adam")
    # In the second validation, after step 8, and in the test split, once three validations were done.
    for batch, step, unvalidated in ((6, 8, 8), (14, STEPS, None)):
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
        done = run_python(*launcher, program, batch, *words)
        assert done.returncode == 0, done.stderr
        status = status_of(run)
        assert (status["state"], status["reason"], status["step"]) == ("preempted", "SIGUSR1", step), done.stdout
        card = json.loads((run / "checkpoints" / f"step-{step:08d}" / "checkpoint.json").read_bytes())
        assert card["progress"]["unvalidated_step"] == unvalidated
        assert not (run / "metrics.json").exists()
    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr
    for path in sorted((undisturbed / "checkpoints").rglob("*")):
        if path.is_file() and path.name != "checkpoint.json":  # which names the run folder
            assert path.read_bytes() == (run / path.relative_to(undisturbed)).read_bytes(), path
    for name in ("metrics.json", "predictions/val.parquet", "predictions/test.parquet", "best/model.safetensors"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.long
def test_a_best_model_that_cannot_be_written_is_a_warning(shard_root: Path, tmp_path: Path) -> None:
    """The run goes on; that there is nothing to score in the end is said, and mended by going on."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".best.part").touch()  # where the folder of the new model would be
    words = training(shard_root, run, train__max_steps=8)
    done = run_python("-m", *words)
    assert done.returncode == 2, done.stderr
    fault = f"{run / 'best'}: the best model, of step 4, wasn't kept ([Errno 17] File exists: '{run / '.best.part'}')"
    assert f"warning: {fault}; failure 1 of 3 in a row that end the run" in done.stderr
    assert "of step 8, wasn't kept" in done.stderr
    assert f"error: {run / 'best'}: no model could be kept; mend that and go on by --run.resume auto" in done.stderr
    assert status_of(run)["state"] == "failed"
    (run / ".best.part").unlink()
    done = run_python("-m", *words)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 8" in done.stdout
    assert status_of(run)["state"] == "finished"
    assert json.loads((run / "best" / "model.json").read_bytes())["results"]["step"] == 8


def test_best_models_that_cannot_be_written_end_the_run_like_checkpoints(shard_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".best.part").touch()
    done = run_python("-m", *training(shard_root, run, train__max_steps=8, checkpoint__max_failures=1))
    assert done.returncode == 2, done.stderr
    assert "1 in a row failed, the last good one is of step 3 (checkpoint.max_failures)" in done.stderr
