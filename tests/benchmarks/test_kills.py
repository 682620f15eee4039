"""Twenty SIGKILLs over one training on three ranks, of a random rank or of torchrun: `make benchmarks`.

A killed rank is brought back by torchrun (`--max-restarts`), a killed torchrun by calling it again. In the end there
are the weights of a training that nothing disturbed, to the bit.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, last_step, torchrun
from tests.integration.test_resume import losses_of, processes_of, training

RANKS, STEPS = 3, 80
KILLS = int(os.environ.get("FDTRAIN_TEST_KILLS", "20"))


def rank_of(pid: int) -> str | None:
    """What torchrun has told a worker; None for any other process, or one that is gone."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((word[5:].decode() for word in words if word.startswith(b"RANK=")), None)


def wait(true: Callable[..., bool], *words: object, seconds: float = 300) -> bool:
    """Whether a condition came true in time."""
    deadline = time.monotonic() + seconds
    while not (met := true(*words)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


def are_all_there(run: Path) -> bool:
    return {rank_of(pid) for pid in processes_of(run)} >= {*map(str, range(RANKS))}


def has_reached(run: Path, step: int, agent: subprocess.Popen[bytes]) -> bool:
    return last_step(run) >= step or agent.poll() is not None


def is_gone(run: Path, pid: int) -> bool:
    return pid not in processes_of(run)


@pytest.mark.timeout(3600)
def test_random_kills_leave_no_trace(shard_root: Path, tmp_path: Path) -> None:
    undisturbed, killed, log = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "output"
    settings = {"train__epochs": 99, "train__max_steps": STEPS, "checkpoint__every_steps": 2, "checkpoint__keep": 2}
    done = torchrun(RANKS, *training(shard_root, undisturbed, **settings))
    assert done.returncode == 0, done.stderr

    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}", f"--max-restarts={KILLS}"]
    command = [sys.executable, *launcher, "-m", *training(shard_root, killed, **settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    draws, goal, began = random.Random(0), 0, time.monotonic()
    with log.open("wb") as output, ExitStack() as stack:

        def launch() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(process.kill)
            return process

        agent = launch()
        print(f"\n{'kill':>4s}  {'victim':8s}  {'when':24s}  {'after':>7s}")
        for number in range(1, KILLS + 1):
            goal += draws.randint(1, 3)
            victim = draws.choice([*map(str, range(RANKS)), "torchrun"])
            delay = draws.uniform(0, 0.5)  # may fall into a step, a validation or the writing of a checkpoint
            if draws.random() < 0.25:  # while it starts
                assert wait(are_all_there, killed), log.read_text()[-5000:]
                time.sleep(10 * delay)
                when = f"{10 * delay:.1f} s after a start"
                goal = max(goal, last_step(killed))
            else:
                assert wait(has_reached, killed, goal, agent), log.read_text()[-5000:]
                time.sleep(delay)
                when = f"{delay:.2f} s after step {last_step(killed)}"
                goal = max(goal, last_step(killed))
            assert agent.poll() is None, log.read_text()[-5000:]
            pids: dict[str | None, int] = {}
            while victim not in pids:  # the ranks of before may be gone, and those that come not there yet
                assert agent.poll() is None, log.read_text()[-5000:]
                pids = {rank_of(pid): pid for pid in processes_of(killed) if pid != agent.pid} | {"torchrun": agent.pid}
            os.kill(pids[victim], signal.SIGKILL)
            if victim == "torchrun":
                agent.wait()
                assert wait(lambda: processes_of(killed) == [], seconds=30)  # its workers go with it
                agent = launch()
            else:
                assert wait(is_gone, killed, pids[victim], seconds=30)
            who = victim if victim == "torchrun" else f"rank {victim}"
            print(f"{number:4d}  {who:8s}  {when:24s}  {time.monotonic() - began:5.0f} s", flush=True)
        assert agent.wait(600) == 0, log.read_text()[-5000:]

    assert wait(lambda: processes_of(killed) == [], seconds=10)
    assert losses_of(killed) == losses_of(undisturbed)
    names = ["best/model.safetensors", "metrics.json", "predictions/val.parquet", "predictions/test.parquet"]
    last = f"checkpoints/step-{STEPS:08d}"
    names += [f"{last}/{path.name}" for path in (undisturbed / last).iterdir() if path.name != "checkpoint.json"]
    for name in names:
        assert (undisturbed / name).read_bytes() == (killed / name).read_bytes(), name
    print(f"{KILLS} kills: {len(names)} files of the same bytes, the same {STEPS} losses, and no process left")
