"""Trainings as tasks of a Ray cluster: each takes its cores and GPUs on one node, and runs torchrun there."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fdtrain.config import HostError, UserError
from launch.ray_address import cluster_address
from launch.study.folder import StudyFolder
from launch.study.grid import Cell
from launch.study.process import Command, training_words
from launch.study.settings import RunnerPart

ENVIRONMENT = ("MLFLOW_", "FDTRAIN_", "OMP_NUM_THREADS", "PYTHONPATH")
"""Variables, by their beginnings, that a training gets from the study's own environment."""


class RayCluster:
    """A Ray cluster, joined or started on this host; as `local.Local`, a runner of trainings.

    Args:
        runner: What each training takes.

    Raises:
        UserError: no node has room for a training.
        HostError: there is no cluster at the address.
    """

    def __init__(self, runner: RunnerPart) -> None:
        # Without an address Ray would join whichever cluster was started last on this host.
        address = cluster_address(runner.address, "runner.address") or "local"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its future, without a warning of it
        import ray

        try:
            ray.init(address=address, include_dashboard=None if address != "local" else False, **_QUIET)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise HostError(f"runner.address: no Ray cluster at {address} ({str(error).splitlines()[0]})") from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        has_gpus = any(node.get("GPU") for node in nodes)
        self.ranks = runner.ranks or 1
        self.wanted = {"CPU": float(runner.cpus or self.ranks), "GPU": float(self.ranks if has_gpus else 0)}
        room = sum(int(min(node.get(key, 0.0) // want for key, want in self.wanted.items() if want)) for node in nodes)
        if not room:
            raise UserError(
                f"runner: a training wants {self._told()}, and no node of the Ray cluster has these; it has "
                + ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
            )
        self.parallel = min(runner.parallel or room, room)
        self._nodes, self._address = len(nodes), address

    def describe(self) -> str:
        """For a terminal."""
        place = "started here" if self._address == "local" else f"at {self._address}"
        return f"Ray {place}, {self._nodes} node{'s' * (self._nodes != 1)}: {self._told()} for each training"

    def _told(self) -> str:
        return f"{self.wanted['CPU']:g} CPUs and {self.wanted['GPU']:g} GPUs"

    def start(self, cell: Cell, slot: int, folder: StudyFolder) -> "RayTraining":
        """Start a training, wherever there is room."""
        environment = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)}
        threads = max(int(self.wanted["CPU"]) // self.ranks, 1)
        words = training_words(cell.words, folder.run(cell.name), self.ranks)
        return RayTraining(words, folder, cell.name, {"OMP_NUM_THREADS": str(threads)} | environment, self.wanted)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        import ray

        ray.shutdown()


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}


class RayTraining:
    """A training as a task; as `trainings.Handle`.

    Args:
        words: Behind `python`.
        folder: Of the study, on a file system that all nodes see.
        name: Of the cell.
        environment: Variables of the training beside those of its node.
        wanted: CPU and GPU, their numbers.
    """

    def __init__(
        self, words: list[str], folder: StudyFolder, name: str, environment: dict[str, str], wanted: dict[str, float]
    ) -> None:
        import ray

        self._log, self._stop = folder.log(name), folder.path / ".study" / f"stop-{name}"
        self.begins_at = self._log.stat().st_size if self._log.exists() else 0
        self._stop.unlink(missing_ok=True)
        task = ray.remote(num_cpus=wanted["CPU"], num_gpus=wanted["GPU"], max_retries=0)(train_here)
        place = {"cwd": str(Path.cwd()), "log": str(self._log), "stop": str(self._stop)}
        self._reference = task.remote(words, environment, place)
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, once it has ended; 1 where its node or Ray failed, which is in its log then."""
        import ray

        if self._code is None and ray.wait([self._reference], timeout=0)[0]:
            try:
                self._code = ray.get(self._reference)
            except ray.exceptions.RayError as error:
                self._log.parent.mkdir(parents=True, exist_ok=True)
                with self._log.open("a") as file:
                    file.write(f"ray: error: {_last_line(error)}\n")
                self._code = 1
            self._stop.unlink(missing_ok=True)
        return self._code

    def stop(self) -> None:
        """Tell it to save and stop, on whichever node it is; one that waits for room isn't begun."""
        self._stop.touch()

    def kill(self) -> None:
        """End it at once; torchrun ends with Ray's worker."""
        import ray

        with suppress(ray.exceptions.RayError):
            ray.cancel(self._reference, force=True)


def train_here(words: list[str], environment: dict[str, str], place: dict[str, str]) -> int:
    """On a node: run a training to its end, and tell it to stop when the study says so; gives its exit code."""
    stop = Path(place["stop"])
    with suppress(OSError):
        os.chdir(place["cwd"])
    if str(Path.cwd()) != place["cwd"] or not stop.parent.is_dir():
        raise RuntimeError(
            f"node {socket.gethostname()} doesn't see {stop.parent.parent}; study.dir and the project must be on a "
            "file system that all nodes share"
        )
    if stop.exists():
        return 1
    command = Command(words, Path(place["log"]), os.environ | environment, is_training=True)
    while command.poll() is None:
        if stop.exists():
            command.stop()
        time.sleep(0.2)
    code = command.poll()
    assert code is not None
    return code


def _last_line(error: Exception) -> str:
    return [line for line in str(error).splitlines() if line.strip()][-1].strip()
