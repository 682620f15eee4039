"""`torchrun --max-restarts`: when a rank dies, the group comes back by itself and goes on from the last checkpoint."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, torchrun
from tests.integration.test_resume import STEPS, losses_of, processes_of, training, until_step

LATE_RANK = """
import os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from fdtrain.runtime import start

rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
time.sleep(2 * rank if attempt else 0)  # so that rank 0 sees what the processes before have left behind
with start("fp32", timeout_minutes=5) as runtime:
    total = torch.tensor(rank)
    dist.all_reduce(total)
    writer = dist.new_group(backend="gloo")
    dist.all_reduce(total, group=writer)
    if rank == 1 and attempt < 2:
        os._exit(1)
    assert runtime.is_restarted()
    Path(sys.argv[1], str(rank)).write_text(str(int(total)))
"""


def restarting(restarts: int, ranks: int, *words: object) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, f"--max-restarts={restarts}", *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def test_a_group_that_starts_again_meets_its_own_ranks_alone(tmp_path: Path) -> None:
    """The store of torchrun has the addresses of the processes before; a rank that comes first must not take them."""
    program = tmp_path / "program.py"
    program.write_text(LATE_RANK)
    words = restarting(2, 2, program, tmp_path)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["2", "2"]


@pytest.mark.long
def test_a_killed_rank_comes_back_and_the_run_ends_to_the_same_bits(shard_root: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    done = torchrun(3, *training(shard_root, undisturbed))
    assert done.returncode == 0, done.stderr
    # Whoever starts it again says nothing of resuming.
    words = restarting(2, 3, "-m", *training(shard_root, killed, run__resume="never"))
    with subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as agent:
        for step, victim in ((5, 2), (11, 0)):
            until_step(step, killed, agent)
            workers = sorted(pid for pid in processes_of(killed) if pid != agent.pid)  # in the order of their ranks
            os.kill(workers[victim], signal.SIGKILL)
        output = agent.communicate(timeout=600)[0]
    assert agent.returncode == 0, output
    assert output.count("resumed after step") == 2, output
    assert json.loads((killed / "status.json").read_bytes())["state"] == "finished"
    assert losses_of(undisturbed) == losses_of(killed)
    last = f"checkpoints/step-{STEPS:08d}"
    for name in (f"{last}/model.safetensors", f"{last}/training.pt", "metrics.json", "predictions/test.parquet"):
        assert (undisturbed / name).read_bytes() == (killed / name).read_bytes(), name
    assert processes_of(killed) == []
