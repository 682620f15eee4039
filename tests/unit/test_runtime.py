"""What ranks tell each other, and what a process group leaves behind: nothing."""

import sys

import pytest

from fdtrain.config import HostError, TransientError, UserError
from fdtrain.runtime import start
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
