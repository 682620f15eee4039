"""Sweeps on a real Ray: from the command to the best settings, killed on the way, interrupted, refused."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from fdtrain.cli import training_config
from tests.conftest import REPOSITORY, run_python
from tests.mlflow_server import free_port
from tests.shards import write_root

SWEEP = {
    "base": str(REPOSITORY / "configs" / "meso4.yaml"),
    "settings": {
        "train.epochs": 3,
        "train.global_batch_size": 24,
        "train.micro_batch_size": 8,
        "optim.warmup_steps": 2,
        "tracking.system_metrics": False,
    },
    "space": {
        "optim.lr": {"loguniform": [1e-4, 1e-2]},
        "optim.min_lr": {"loguniform": [1e-7, "optim.lr"]},
    },
    "scheduler": {"reduction_factor": 2},
    "calibrate": False,
    "storage": "sweeps",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("sweep") / "root", (77,), pairs=(6, 5, 5), size=32)


def write_sweep(folder: Path, **changes: object) -> list[str]:
    """Write a sweep's file; gives the words to call it by."""
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP | changes))
    return ["-m", "launch.sweep", "--config", "sweep.yaml", "--qualities", "77"]


class Running:
    """A sweep under way, in a process group of its own as a terminal's.

    Args:
        words: Of its command.
        folder: Where it runs.
    """

    def __init__(self, words: list[str], folder: Path) -> None:
        self.log = folder / "sweep.log"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *words], cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        self.family: dict[int, psutil.Process] = {}

    def until(self, true: Callable[[str], bool], seconds: float = 900) -> None:
        """Wait for something in the log, and note every process that is started meanwhile."""
        deadline = time.monotonic() + seconds
        while not true(self.log.read_text()):
            self.note_family()
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        self.note_family()

    def note_family(self) -> None:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            self.family[process.pid] = process

    def end(self, number: signal.Signals) -> int:
        """Send the signal, as a terminal does, to the whole group if it is Ctrl-C; gives the exit code."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return self.process.wait(300)


def is_at_work(process: psutil.Process) -> bool:
    """A dead one may stay in the list of processes where the first of them, as in many containers, reaps none."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def trials(folder: Path) -> dict[int, dict]:
    content = json.loads((folder / "sweeps" / "meso4-sweep" / "q77" / "results.json").read_text())
    return {trial["number"]: trial for trial in content["trials"]}


def epochs_trained(folder: Path) -> dict[int, int]:
    """Validations that each trial's trainings have written out, repeated ones counted again."""
    found = (folder / "sweeps" / "meso4-sweep" / "q77" / "trials").glob("trial-*/output.txt")
    return {int(path.parent.name[-3:]): path.read_text().count("epoch ") for path in found}


@pytest.mark.long
def test_a_sweep_killed_on_the_way_goes_on_and_ends_with_its_records(root: Path, tmp_path: Path) -> None:
    """Killed when some trials have ended and others not: those stay as they are, and these go on."""
    from mlflow import MlflowClient

    # What some steps that are tried can't do by themselves: they aren't recorded.
    settings = SWEEP["settings"] | {"tracking.tags": {"team": "forensics"}}  # type: ignore[operator]
    written = write_sweep(tmp_path, trials=4, max_concurrent=2, calibrate=True, settings=settings)
    words = [*written, "--data.root", str(root)]
    first = Running(words, tmp_path)
    first.until(lambda log: "trials done" in log and log.count(" starts") > 2)
    assert re.search(r"time: .* \(by \d steps of one worker, \d+ images/s\)", first.log.read_text())
    ended = [line for line in first.log.read_text().splitlines() if "trials done" in line]
    first.end(signal.SIGKILL)
    numbers = {int(line.split()[2]) for line in ended}

    again = run_python(*words, cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "holds a sweep already; go on with it by --resume" in again.stderr

    other = run_python(*words, "--resume", "--seed", "5", cwd=tmp_path)
    assert other.returncode == 2
    assert "seed: 5 where" in other.stderr

    before = epochs_trained(tmp_path)  # by now the workers of the trials that have ended are gone
    resumed = run_python(*words, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for number in numbers:  # not run again, and known to the search
        assert f"trial {number} starts" not in resumed.stdout
        assert f"trial {number} goes on" not in resumed.stdout
        assert epochs_trained(tmp_path)[number] == before[number]
    found = trials(tmp_path)
    assert sorted(found) == [0, 1, 2, 3]
    assert {trial["state"] for trial in found.values()} <= {"finished", "stopped"}
    assert all(trial["epochs"] for trial in found.values())
    best = training_config(["--config", str(tmp_path / "configs" / "best" / "meso4-q77.yaml")])
    winner = max((trial for trial in found.values() if trial["state"] == "finished"), key=lambda trial: trial["value"])
    assert best.optim.lr == winner["settings"]["optim.lr"]

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([client.get_experiment_by_name("fdtrain").experiment_id])
    parent = next(run for run in runs if run.info.run_name == "meso4-sweep-q77")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in children) == [f"trial-{number:03d}" for number in range(4)]
    assert {run.info.status for run in children} <= {"FINISHED", "KILLED"}, resumed.stderr
    assert parent.info.status == "FINISHED"
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert artifacts >= {"results.csv", "parallel_coordinates.png", "meso4-q77.yaml"}
    version = client.get_model_version_by_alias("fdtrain-meso4-q77", "champion")
    assert client.get_run(version.run_id).info.run_name == f"trial-{winner['number']:03d}"
    assert version.tags["best_of"] == "4"
    tested = [name for run in children if "test/video/auc" in run.data.metrics for name in [run.info.run_name]]
    assert tested == [f"trial-{winner['number']:03d}"]  # the others have left the test split alone

    nothing = run_python(*words, "--resume", cwd=tmp_path)
    assert nothing.returncode == 0
    assert "finished already; nothing to do" in nothing.stdout
    assert len(epochs_trained(tmp_path)) == 4


@pytest.mark.long
def test_ctrl_c_leaves_no_process_and_a_failing_trial_does_not_end_the_sweep(root: Path, tmp_path: Path) -> None:
    """One trial's learning rate diverges at once; then somebody presses Ctrl-C."""
    space = {"optim.lr": {"choice": [1e30, 1e29]}}
    settings = SWEEP["settings"] | {"train.max_nonfinite_steps": 0, "optim.clip_grad_norm": 0}  # type: ignore[operator]
    settings |= {"tracking.enabled": False, "optim.warmup_steps": 0}
    words = write_sweep(tmp_path, space=space, settings=settings, trials=4, max_concurrent=1)
    sweep = Running([*words, "--data.root", str(root)], tmp_path)
    sweep.until(lambda log: "failed: " in log and log.count(" starts") > 1)
    log = sweep.log.read_text()
    assert "train.max_nonfinite_steps allows 0" in log or "not finite" in log
    assert sweep.family
    assert sweep.end(signal.SIGINT) == 130
    assert [process for process in sweep.family.values() if is_at_work(process)] == []
    assert "the same command with --resume goes on" in sweep.log.read_text()


@contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Ray cluster of two nodes with a core each, both on this host: its address, and the process of the second."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    head = ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false"]
    # The path of a socket has at most 107 characters, and Ray's are deep in its folder.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as temporary, ExitStack() as stack:
        nodes = []
        for name, words in (("head", [*head, f"--temp-dir={temporary}"]), ("other", [f"--address={address}"])):
            command = [Path(sys.executable).parent / "ray", "start", "--block", "--num-cpus=1", f"--node-name={name}"]
            with (folder / f"ray-{name}.log").open("wb") as log:
                environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
                node = subprocess.Popen(
                    [*command, *words, "--disable-usage-stats"], env=environment, stdout=log, stderr=log
                )
            stack.callback(kill_family, node)
            _until_ray_has(len(nodes) + 1, address)
            nodes.append(node)
        yield address, nodes[1]


def _until_ray_has(count: int, address: str) -> None:
    """So many nodes; a driver would need one that is up already."""
    import ray
    from ray._raylet import GcsClient

    deadline = time.monotonic() + 120
    while True:
        with suppress(ray.exceptions.RpcError):
            nodes = GcsClient(address=address).get_all_node_info(timeout=5).values()
            if sum(node.state == 0 for node in nodes) == count:
                return
        assert time.monotonic() < deadline
        time.sleep(0.5)


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """With SIGKILL, the process and all that came of it."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        family = first.children(recursive=True)
        for each in (*family, first):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, 30)
    process.wait(300)


@pytest.mark.long
def test_a_trial_whose_node_is_lost_goes_on_elsewhere(root: Path, tmp_path: Path) -> None:
    """Two trials, one on each node; the second node dies with all its processes when its trial has a checkpoint."""
    settings = SWEEP["settings"] | {"train.epochs": 30, "tracking.enabled": False}  # type: ignore[operator]
    with two_nodes(tmp_path) as (address, other):
        words = write_sweep(tmp_path, trials=2, address=address, settings=settings, scheduler={"kind": "none"})
        sweep = Running([*words, "--data.root", str(root)], tmp_path)
        folders = tmp_path / "sweeps" / "meso4-sweep" / "q77" / "trials"
        sweep.until(lambda _: len(list(folders.glob("trial-*/checkpoints/step-*/checkpoint.json"))) >= 4)
        both = epochs_trained(tmp_path)
        assert sorted(both) == [0, 1]
        kill_family(other)
        assert sweep.process.wait(600) == 0, sweep.log.read_text()
    log = sweep.log.read_text()
    found = trials(tmp_path)
    assert {number: trial["state"] for number, trial in found.items()} == {0: "finished", 1: "finished"}, log
    assert [len(trial["epochs"]) for trial in found.values()] == [30, 30]
    outputs = [path.read_text() for path in folders.glob("trial-*/output.txt")]
    assert sum("resumed after step" in output for output in outputs) == 1  # the one that was there


@pytest.mark.parametrize(
    ("changes", "words", "code", "message"),
    [
        ({"cpus_per_worker": 4096}, [], 2, "cpus_per_worker: 4096 CPUs of one node, and no node has more than"),
        ({}, ["--data.root", "nowhere"], 2, "data.root: node "),
        ({"address": "127.0.0.1:9"}, [], 1, "address: no Ray cluster answers at 127.0.0.1:9 (Connection refused)"),
    ],
)
def test_what_the_cluster_cannot_do_is_refused_before_any_trial(
    root: Path, tmp_path: Path, changes: dict, words: list[str], code: int, message: str
) -> None:
    command = write_sweep(tmp_path, **changes)
    done = run_python(*command, "--data.root", root, *words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(f"python -m launch.sweep: error: {message}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("sweeps/*/*/study.jsonl"))
