"""A killed run goes on as if nothing had happened, and nothing of it is left behind."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdtrain.config import OptimConfig
from fdtrain.optim import lr_factor
from tests.conftest import REPOSITORY, last_step, small_training, torchrun

STEPS = 16


def training(root: Path, run: Path, **overrides: object) -> list[str]:
    """Dropout (meso4 has 0.5 twice), accumulation (24 = 4 x ranks x 2 or 3), balance, mix, augmentation, averages.

    A checkpoint is written every 3 steps.
    """
    settings = {
        "run__resume": "auto",
        "train__epochs": 8,
        "train__max_steps": STEPS,
        "train__log_every": 1,
        "checkpoint__every_steps": 3,
        "checkpoint__keep": 99,
        "data__balance": "method",
        "data__mix": '{"77": 2, "raw": 1}',
        "data__shuffle": "blocks",
        "data__block_samples": 8,
        "augment__preset": "deepfakebench",
        "optim__ema_decay": 0.9,
    }
    return small_training(root, run, **settings | overrides)


def losses_of(run: Path) -> dict[int, float]:
    """Training loss of each step in the log."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def processes_of(run: Path) -> list[int]:
    """Ids of the living processes that have the run folder on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile
                continue
            if str(run).encode() in words:
                found.append(int(entry.name))
    return found


def until_step(step: int, run: Path, process: subprocess.Popen[Any]) -> None:
    """Wait until a training has logged `step`."""
    deadline = time.monotonic() + 600
    while last_step(run) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_torchrun_at(step: int, ranks: int, words: list[str], run: Path) -> None:
    """Start a training, SIGKILL its torchrun alone once the log has reached `step`, wait for its workers to be gone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command + words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as agent:
        until_step(step, run, agent)
        while not any((run / "checkpoints").glob("step-*")):  # the first one is written in the background
            assert agent.poll() is None
            time.sleep(0.02)
        assert len(processes_of(run)) == ranks + 1
        agent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while processes_of(run) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(run) == []


def staged_training(root: Path, run: Path, **overrides: object) -> list[str]:
    """The multi-attentional network through its three stages of an epoch (3 steps) each, with both passes."""
    settings = {
        "model__name": "multi_attention",
        "model__drop_path_rate": 0.2,
        "multi_attention__backbone": "efficientnet_b0",
        "multi_attention__backbone_epochs": 1,
        "multi_attention__head_epochs": 1,
        "train__epochs": 3,
        "checkpoint__every_steps": 2,
        "train__global_batch_size": 8,
        "data__videos_fraction": 0.34,
        "optim__lr": 1e-3,
    }
    return training(root, run, **settings | overrides)


def wide_training(root: Path, run: Path, **overrides: object) -> list[str]:
    """An EfficientNet with drop path on four ranks, at an accumulation of 2: three steps an epoch."""
    settings = {
        "model__name": "efficientnet_b0",
        "model__drop_path_rate": 0.2,
        "data__image_size": 32,
        "train__global_batch_size": 32,
        "train__max_steps": 9,
    }
    return training(root, run, **settings | overrides)


@pytest.fixture(scope="module")
def staged_run(shard_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged training on two ranks that nothing disturbed, with its checkpoints after steps 2, 3, 4, 6, 8 and 9."""
    run = tmp_path_factory.mktemp("staged") / "run"
    done = torchrun(2, *staged_training(shard_root, run))
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize(
    ("words", "ranks", "steps"),
    [
        (training, 2, STEPS),
        pytest.param(training, 3, STEPS, marks=pytest.mark.long),
        pytest.param(staged_training, 2, 9, marks=pytest.mark.long),
        pytest.param(wide_training, 4, 9, marks=pytest.mark.long),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(
    shard_root: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    words: Callable[[Path, Path], list[str]],
    ranks: int,
    steps: int,
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    if words is staged_training:
        undisturbed = request.getfixturevalue("staged_run")
    else:
        done = torchrun(ranks, *words(shard_root, undisturbed))
        assert done.returncode == 0, done.stderr

    step = random.Random(ranks).randrange(4, steps - 2)
    kill_torchrun_at(step, ranks, words(shard_root, killed), killed)
    # A worker that outlives another by a moment sees it go, and may still write that down.
    assert json.loads((killed / "status.json").read_bytes())["state"] in ("running", "failed")
    done = torchrun(ranks, *words(shard_root, killed))
    assert done.returncode == 0, done.stderr
    assert "resumed after step" in done.stdout

    for path in sorted((undisturbed / "checkpoints").rglob("*")):
        if path.is_file() and path.name != "checkpoint.json":  # which names the run folder
            assert path.read_bytes() == (killed / path.relative_to(undisturbed)).read_bytes(), path
    for name in ("metrics.json", "predictions/val.parquet", "predictions/test.parquet", "best/model.safetensors"):
        assert (undisturbed / name).read_bytes() == (killed / name).read_bytes(), name
    assert losses_of(undisturbed) == losses_of(killed)
    assert list(losses_of(killed)) == list(range(1, steps + 1))


@pytest.mark.long
def test_what_a_resumed_run_may_not_change_is_named(shard_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = torchrun(1, *training(shard_root, run))
    assert done.returncode == 0, done.stderr
    again = torchrun(1, *training(shard_root, run))
    assert again.returncode == 0, again.stderr
    assert "finished already, after 16 steps; nothing to do" in again.stdout
    other = torchrun(1, *training(shard_root, run, optim__lr=1e-4))
    assert other.returncode == 1  # torchrun's, for any exit code of a worker
    assert "optim.lr: 0.0001 where" in other.stderr
    assert json.loads((run / "status.json").read_bytes())["state"] == "finished"
    other_engine = torchrun(1, *training(shard_root, run, train__max_steps=18, engine__kind="deepspeed"))
    assert "engine.kind: the checkpoint is of ddp" in other_engine.stderr
    other_precision = torchrun(1, *training(shard_root, run, train__max_steps=18, precision="bf16"))
    assert "precision: bf16 where" in other_precision.stderr
    assert "was trained with fp32" in other_precision.stderr
    named = {"engine__kind": "ddp", "precision": "fp32"}  # what auto came to
    longer = torchrun(1, *training(shard_root, run, train__max_steps=18, **named))
    assert longer.returncode == 0, longer.stderr
    assert "resumed after step 16" in longer.stdout
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    rates = {line["step"]: line["train/lr"] for line in lines if "train/lr" in line}
    # Also the first step follows the longer schedule, not the rate at which the shorter one ended.
    assert rates[17] == pytest.approx(3e-3 * lr_factor(16, 18, OptimConfig(lr=3e-3, warmup_steps=2)))
    wrong_data = torchrun(1, *training(shard_root.parent / "nowhere", run))
    assert "no such folder; data.root is the folder" in wrong_data.stderr
    assert json.loads((run / "status.json").read_bytes())["state"] == "finished"


@pytest.mark.long
def test_on_another_number_of_ranks_it_goes_on_with_the_same_samples(shard_root: Path, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    for run, steps, ranks in ((two, 6, 2), (two, 8, 2), (one, 6, 2), (one, 8, 1)):
        done = torchrun(ranks, *training(shard_root, run, train__max_steps=steps))
        assert done.returncode == 0, done.stderr
    assert losses_of(two)[6] == losses_of(one)[6]
    # Step 7 has the same micro-batches and draws; only the order of sums differs.
    assert losses_of(two)[7] == pytest.approx(losses_of(one)[7], rel=1e-4)


@pytest.mark.parametrize(("stage", "last"), [("head", 4), ("whole", 8)])
def test_a_stage_goes_on_with_the_same_samples_on_one_rank(
    shard_root: Path, tmp_path: Path, staged_run: Path, stage: str, last: int
) -> None:
    """One rank takes up what two began, within the stage "head" (steps 4 to 6) or "whole" (steps 7 to 9)."""
    expected, run = losses_of(staged_run), tmp_path / stage
    others = {path.name for path in (staged_run / "checkpoints").glob("step-*")} - {f"step-{last:08d}"}
    assert others
    shutil.copytree(staged_run, run, ignore=lambda folder, names: others.intersection(names))
    done = torchrun(1, *staged_training(shard_root, run, train__max_steps=last + 1))
    assert done.returncode == 0, done.stderr
    assert f"resumed after step {last}" in done.stdout
    found = losses_of(run)
    assert list(found) == list(range(1, last + 2))
    # The same micro-batches and draws; only the order of sums differs. The loss of no other step would pass for it.
    assert found[last + 1] == pytest.approx(expected[last + 1], rel=1e-3)
    assert min(expected, key=lambda step: abs(expected[step] - found[last + 1])) == last + 1
