"""A rank that fails or is lost is said within seconds, also where the others wait in C++ for good."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY, run_python, small_training
from tests.mlflow_server import free_port

STUCK = """
import ctypes

def wait_in_c() -> None:
    # As NCCL has a rank wait for the device: signals come, but no Python handler runs.
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)
"""

ONE_RANK_FAILS = (
    STUCK
    + """
import sys, threading
import torch.distributed as dist
from fdtrain import watch
from fdtrain.cli import exit_code
from fdtrain.config import HostError
from fdtrain.process import exit_with
from fdtrain.runtime import start

watch.LEAVE_S = 1.0
dist.destroy_process_group = lambda: threading.Event().wait()  # as NCCL's, which waits for all ranks

def work() -> int:
    with start("fp32") as runtime:
        if runtime.rank == 1:
            raise HostError("this rank's disk is full")
        runtime.watch.on_loss.append(lambda reason: print(f"status: {reason}", flush=True))
        wait_in_c()
    return 0

exit_with(exit_code("program", work))
"""
)


def run_ranks(program: str, *words: object, ranks: int = 2) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each rank of a program, without torchrun, which would end the others."""
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = os.environ | place | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, words)],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def test_an_error_of_one_rank_is_shown_and_ends_those_that_wait_for_it() -> None:
    (code, out, err), (other_code, _, other_err) = run_ranks(ONE_RANK_FAILS)
    assert other_code == 1
    assert "program: error: rank 1 on " in other_err
    assert other_err.endswith(": this rank's disk is full\n")
    assert code == 1
    reason = "rank 1 was lost: HostError: this rank's disk is full; this rank waited for it in vain\n"
    assert out == f"status: {reason}"
    assert err.endswith(reason)


CPP_ENDS = (
    STUCK
    + """
import threading
from fdtrain.watch import TerminateHook

hook = TerminateHook(lambda: print("ended by C++", flush=True))
throw = ctypes.CDLL("libstdc++.so.6")._ZSt20__throw_out_of_rangePKc
threading.Thread(target=throw, args=[b"a collective took too long"], daemon=True).start()
wait_in_c()
"""
)


def test_an_exception_that_ends_a_thread_of_cpp_is_reported_first() -> None:
    """As that of NCCL's watchdog does."""
    done = run_python("-c", CPP_ENDS, timeout=300)
    assert done.returncode == -6
    assert done.stdout == "ended by C++\n"
    assert "a collective took too long" in done.stderr


A_RANK_IS_KILLED = (
    STUCK
    + """
import os, signal, sys
from fdtrain import watch
from fdtrain.cli import main
from fdtrain.engines import DDPEngine
from fdtrain.process import exit_with

watch.LEAVE_S = 1.0
train_step = DDPEngine.train_step

def step(self, *words):
    if self.schedule.last_epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL) if self.runtime.rank == 1 else wait_in_c()
    return train_step(self, *words)

DDPEngine.train_step = step
exit_with(main(sys.argv[1:]))
"""
)


def test_the_status_says_which_rank_was_killed(shard_root: Path, tmp_path: Path) -> None:
    """Under torchrun, before it kills the ranks that are left."""
    program, run = tmp_path / "program.py", tmp_path / "run"
    program.write_text(A_RANK_IS_KILLED)
    words = small_training(shard_root, run)[1:]
    done = run_python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, program, *words)
    assert done.returncode == 1
    status = json.loads((run / "status.json").read_bytes())
    assert status["state"] == "failed"
    assert status["reason"].startswith("rank 1 was lost: its process ended without a word (")
    assert f": {status['reason']}\n" in done.stderr
