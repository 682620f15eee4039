"""What all tests share: a small shard set, and a way to run the programs as a user would."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported. Two test files and a training's ranks share the cores: with threads of their own on top,
# they would mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fdtrain.run_folder import RunFolder
from tests.shards import write_root

REPOSITORY = Path(__file__).parent.parent

# How long an example takes is the machine's business.
settings.register_profile("fdtrain", deadline=None)
settings.load_profile("fdtrain")

# A shell starts what it puts into the background with Ctrl-C ignored, which programs pass on to those that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What programs leave in the folder for temporary files (torchrun its own of each start, the compiler of torch its
    headers of 150 MB) goes with the tests.

    Not below pytest's folder: a socket's path may have 107 bytes, and Ray adds 76 of its own.
    """
    tmp_path_factory.getbasetemp()  # which would lie in there, too
    folder = tempfile.mkdtemp(prefix="fdtrain-")
    # At the end of the process, after multiprocessing has removed its own folder (at -100) in there.
    Finalize(None, shutil.rmtree, args=[folder], kwargs={"ignore_errors": True}, exitpriority=-200)
    Path(folder).chmod(0o711)  # for tests that become another user
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TMPDIR", folder)
        yield


@pytest.fixture(scope="session")
def shard_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the sets q77 and raw of made-up 64 px images: 96 training, 36 validation and 36 test samples."""
    return write_root(tmp_path_factory.mktemp("shards") / "root", (77, "raw"))


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """What a test sets in the environment, or what it calls does (MLflow is told its time-outs there), ends with it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


@pytest.fixture(autouse=True)
def _own_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the MLflow database of whoever runs it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def run_python(*words: object, cwd: Path | None = None, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS...` as a user would, on one compute thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)


def torchrun(ranks: int, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `torchrun --nproc_per_node RANKS -m WORDS...`."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks, "-m")
    return run_python(*launcher, *words, cwd=cwd)


def small_training(root: Path, run: Path, **overrides: object) -> list[str]:
    """Words for a training of seconds on `shard_root`; keyword `train__epochs=3` is `--train.epochs 3`."""
    settings: dict[str, object] = {
        "model.name": "meso4",
        "data.root": root,
        "run.dir": run,
        "train.epochs": 2,
        "train.global_batch_size": 24,
        "train.micro_batch_size": 4,
        "optim.lr": 3e-3,
        "optim.warmup_steps": 2,
        "tracking.enabled": "false",
    }
    settings |= {key.replace("__", "."): value for key, value in overrides.items()}
    return ["fdtrain", *(str(word) for key, value in settings.items() for word in (f"--{key}", value))]


def last_step(run: Path) -> int:
    """The last one in the log of a run, which may be under way; 0 where there is none."""
    records = RunFolder(run).records()
    return records[-1]["step"] if records else 0
