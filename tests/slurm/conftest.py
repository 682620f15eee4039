"""A real Slurm on this host: munged, slurmctld and two slurmd, all on the loopback, all state in a temporary folder."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
NODES = ("n1", "n2")

CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
# Ports of trainings follow from a job's id: clusters that run beside each other on this host must count apart.
FirstJobId={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=20
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=45
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Cluster:
    """A running Slurm.

    Args:
        folder: Its state.
        environment: For every program that talks to it, and for the jobs.
    """

    folder: Path
    environment: dict[str, str]

    def call(self, *words: object, cwd: Path | None = None, check: bool = True, **settings: object) -> str:
        """Run a program to its end; keywords are variables of its environment. Gives what it printed."""
        done = subprocess.run(
            [*map(str, words)],
            env=self.environment | {name: str(value) for name, value in settings.items()},
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: str, *words: object, cwd: Path, options: Sequence[str] = (), **settings: object) -> str:
        """Submit `slurm/SCRIPT` by slurm/submit.sh; gives the job's id."""
        submit = REPOSITORY / "slurm" / "submit.sh"
        printed = self.call(submit, *options, REPOSITORY / "slurm" / script, *words, cwd=cwd, **settings)
        return printed.split()[-1]

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job; of a task of an array, with the id `<array>_<task>`."""
        line = self.call("scontrol", "--oneliner", "show", "job", job).splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def hasten(self, job: str) -> None:
        """Have a requeued job start soon, where Slurm would let it wait for two minutes.

        Not at once: a node refuses a job ("Job credential revoked") that starts within the second in which it was
        taken away, and Slurm then ends the job for good.
        """
        facts = self.job(job)
        if facts["JobState"] == "PENDING" and facts.get("Reason") == "BeginTime":
            begins = datetime.fromisoformat(facts["EligibleTime"])
            if begins > datetime.now() + timedelta(seconds=30):
                self.call("scontrol", "update", f"jobid={job}", "StartTime=now+5seconds", check=False)

    def wait(self, job: str, seconds: float = 900) -> dict[str, str]:
        """Wait for a job's end."""

        def ended() -> bool:
            self.hasten(job)
            return self.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")

        until(ended, seconds, lambda: self.job(job))
        return self.job(job)


def until(true: Callable[[], bool], seconds: float, otherwise: Callable[[], object]) -> None:
    """Wait for a condition; fails with what `otherwise` gives."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.1)


@contextmanager
def daemon(log: Path, environment: dict[str, str], *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon in the foreground of its own; it is stopped at the end."""
    with log.open("wb") as file:
        process = subprocess.Popen([*map(str, words)], env=environment, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def environment_of_jobs(folder: Path) -> dict[str, str]:
    """The environment of this process without what it may have of another Slurm, of GPUs or of settings."""
    foreign = ("SLURM", "SBATCH", "SRUN", "FDTRAIN", "CUDA_VISIBLE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    programs = f"{Path(sys.executable).parent}:{environment['PATH']}:/usr/sbin:/sbin"
    in_venv = (Path(sys.prefix) / "bin" / "activate").exists()
    return environment | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": programs,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "FDTRAIN_VENV": sys.prefix if in_venv else "",
        "FDTRAIN_GPUS": "0",
        "FDTRAIN_PACK_CPUS": "1",
    }


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes with one core each, `n1` and `n2`, both on this host."""
    folder = tmp_path_factory.mktemp("slurm")
    environment = environment_of_jobs(folder)
    if missing := [name for name in PROGRAMS if shutil.which(name, path=environment["PATH"]) is None]:
        pytest.skip(f"no Slurm here ({', '.join(missing)}); apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as root alone")
    for name in ("munge", "state", *NODES):
        (folder / name).mkdir()
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    text = CONFIGURATION.format(folder=folder, ports=free_ports(3), host=socket.gethostname().split(".")[0])
    (folder / "slurm.conf").write_text(text)
    cluster = Cluster(folder, environment)
    munge = [f"--{name}={folder / 'munge' / file}" for name, file in MUNGE_FILES.items()]
    commands = {
        # --force: it would have every folder above its socket open to all, and pytest's are not.
        "munged": ("munged", "--foreground", "--force", *munge),
        "slurmctld": ("slurmctld", "-D", "-c"),
        **{name: ("slurmd", "-D", "-N", name) for name in NODES},
    }
    with ExitStack() as stack:
        started = {}
        for name, words in commands.items():
            started[name] = stack.enter_context(daemon(folder / f"{name}.log", environment, *words))
            if name == "munged":
                _wait_or_skip(started, folder, (folder / "munge" / "socket").exists)
        _wait_or_skip(started, folder, lambda: cluster.call("sinfo", "-ho%T", check=False).split() == ["idle"])
        try:
            yield cluster
        finally:
            cluster.call("scancel", "--user=root", "--full", check=False)
            cluster.call("scancel", "--user=root", check=False)
            until(lambda: not cluster.call("squeue", "-ho%i"), 60, lambda: cluster.call("squeue"))


MUNGE_FILES = {
    "key-file": "key",
    "socket": "socket",
    "pid-file": "pid",
    "log-file": "log",
    "seed-file": "seed",
}


def _wait_or_skip(started: dict[str, subprocess.Popen[bytes]], folder: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        ended = [name for name, process in started.items() if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            culprit = ended[0] if ended else next(reversed(started))
            log = (folder / f"{culprit}.log").read_text(errors="replace").strip().splitlines()
            pytest.skip(f"Slurm can't start here; {culprit} says: {' | '.join(log[-3:])}")
        time.sleep(0.1)
