"""What ranks tell each other, and what a process group leaves behind: nothing."""

import sys

import pytest
import torch

from fdtrain.cli import main
from fdtrain.config import HostError, TransientError, UserError
from fdtrain.runtime import granted_gpus, start
from tests.conftest import run_python

THREADS = """
import gc
from pathlib import Path
import torch
from torch.nn.parallel import DistributedDataParallel
from fdtrain.runtime import start

with start("fp32"):
    DistributedDataParallel(torch.nn.Linear(2, 2))(torch.ones(1, 2)).sum().backward()
gc.collect()
print(*((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have names under /proc on Linux alone")
def test_no_thread_outlives_its_group() -> None:
    """One that lets go of a tensor while the interpreter ends aborts the process."""
    done = run_python("-c", THREADS)
    assert done.returncode == 0, done.stderr
    assert "python" in done.stdout
    assert "gloo" not in done.stdout


@pytest.mark.parametrize("kind", [UserError, HostError, TransientError])
def test_what_rank_0_meets_is_raised_as_what_it_was(kind: type[UserError]) -> None:
    """Who starts a training, such as a sweep, tries again what another attempt may get over."""

    def fail() -> None:
        raise kind("run.dir: no")

    with start("fp32") as runtime, pytest.raises(UserError, match=r"^run\.dir: no$") as caught:
        runtime.on_main(fail)
    assert type(caught.value) is kind


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a node whose GPUs don't work")
@pytest.mark.parametrize(
    "granted", [{"SLURM_GPUS_ON_NODE": "4"}, {"SLURM_JOB_GPUS": "0,1"}, {"CUDA_VISIBLE_DEVICES": "0"}]
)
def test_granted_gpus_that_do_not_work_end_a_run(
    granted: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in granted.items():
        monkeypatch.setenv(name, value)
    assert main(["--config", "configs/meso4.yaml", "--data.root", "nowhere"]) == 2
    said = capsys.readouterr().err
    (name, value), *_ = granted.items()
    assert f"engine.device: {name}={value} grants GPUs, and torch finds none" in said
    assert said.count("\n") == 1

    with start("fp32", device="cpu") as runtime:
        assert runtime.device.type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # nobody but a person says so
    with start("fp32") as runtime:
        assert runtime.device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a host without GPUs")
def test_a_run_that_wants_a_gpu_takes_no_cpu() -> None:
    with pytest.raises(UserError, match=r"^engine\.device: cuda, and torch finds no GPU"), start(device="cuda"):
        pass


@pytest.mark.parametrize(
    ("environment", "granted"),
    [
        ({}, ""),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ""),
        ({"SLURM_GPUS_ON_NODE": "0", "SLURM_JOB_GPUS": ""}, ""),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": ""}, "SLURM_GPUS_ON_NODE=2"),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "-1"}, ""),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8a56a4bc"}, "CUDA_VISIBLE_DEVICES=GPU-8a56a4bc"),
    ],
)
def test_what_grants_gpus(environment: dict[str, str], granted: str) -> None:
    assert granted_gpus(environment) == granted
