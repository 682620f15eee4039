"""A rank that is lost, fails or hangs under NCCL, where the others wait within the device.

These need two GPUs, and are what a CPU can't show: there gloo's errors reach the main thread.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import run_python, small_training

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

ONE_RANK_ENDS = """
import os, signal, sys, time
from fdtrain.cli import main
from fdtrain.engines import DDPEngine
from fdtrain.process import exit_with

how, *words = sys.argv[1:]
train_step = DDPEngine.train_step

def fail() -> None:
    raise RuntimeError("this rank alone")

ends = {"killed": lambda: os.kill(os.getpid(), signal.SIGKILL), "fails": fail, "hangs": lambda: time.sleep(10_000)}

def step(self, *rest):
    if self.schedule.last_epoch == 2 and self.runtime.rank == 1:
        ends[how]()
    return train_step(self, *rest)

DDPEngine.train_step = step
exit_with(main(words))
"""


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("killed", "rank 1 was lost: its process ended without a word ("),
        ("fails", "rank 1 was lost: RuntimeError: this rank alone"),
        ("hangs", "a rank was lost, or didn't answer within engine.timeout_minutes (0.5)"),
    ],
)
def test_the_status_says_what_became_of_a_rank(how: str, reason: str, shard_root: Path, tmp_path: Path) -> None:
    program, run = tmp_path / "program.py", tmp_path / "run"
    program.write_text(ONE_RANK_ENDS)
    words = small_training(shard_root, run, engine__timeout_minutes=0.5)[1:]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    done = run_python(*launcher, program, how, *words, timeout=300)
    assert done.returncode == 1
    status = json.loads((run / "status.json").read_bytes())
    assert status["state"] == "failed"
    assert reason in status["reason"]
    assert reason in done.stderr
    if how == "fails":
        assert "RuntimeError: this rank alone" in done.stderr
