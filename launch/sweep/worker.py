"""What Ray runs on the workers of a trial: the ordinary training, in a group that it makes itself.

Imports Ray, so it is imported where a search begins; torch, which takes seconds, is for the workers alone.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero

from fdtrain.cli import training_config

LOCK_WAIT_S = 120.0
"""How long the workers of a driver that was killed may take to notice, or a file system to forget the lock of a node
that is lost (NFS 4: 90 s)."""

OUTPUT = "output.txt"


@dataclass(frozen=True)
class Places:
    """What a trial is given.

    Args:
        workers: Processes.
        cpus: CPU cores of each.
        gpus: GPUs of each.
        directory: Where the sweep was started; relative paths of settings begin there, on nodes that have it.
    """

    workers: int
    cpus: int
    gpus: float
    directory: str


def train_trial(given: dict[str, Any]) -> None:
    """On each worker: train as `given` says, and report each validation, those of before first."""
    import torch

    from fdtrain.run_folder import RunFolder
    from fdtrain.train import train

    places: Places = given["places"]
    with contextlib.suppress(OSError):  # a node without that folder; paths that matter are whole
        os.chdir(places.directory)
    torch.set_num_threads(places.cpus)
    config = training_config(given["words"])
    config.validate()
    folder = Path(given["folder"])
    rank = ray.train.get_context().get_world_rank()
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)  # the output goes there before the training begins
        RunFolder(folder).wait_until_left(LOCK_WAIT_S)  # then the training says so itself
    place: Any = ray.util.get_current_placement_group()
    ray.train.report({"place": place.id.hex()})
    clock = time.monotonic()
    epochs = 0

    def report(epoch: int, metrics: dict[str, float]) -> None:
        nonlocal clock, epochs
        if epoch > epochs:
            now = time.monotonic()
            values = {"epoch": epoch, given["metric"]: metrics[given["metric"]], "seconds": now - clock}
            clock, epochs = now, epoch
            ray.train.report(values)

    # Only rank 0 knows when the run of before, if it is still there, has let go of its log.
    past = broadcast_from_rank_zero(list(_validations(folder, given["metric"])) if rank == 0 else None)
    for epoch, metrics in enumerate(past or (), start=1):
        report(epoch, metrics)
    clock = time.monotonic()
    with _output(folder / OUTPUT if rank == 0 else None):
        train(config, report)
    ray.train.report({"epoch": epochs, "finished": True})


def _validations(folder: Path, metric: str) -> Iterator[dict[str, float]]:
    """What a run that goes on has measured already, an epoch each."""
    from fdtrain.run_folder import RunFolder

    found = {record["step"]: record[metric] for record in RunFolder(folder).records() if metric in record}
    for _, value in sorted(found.items()):
        yield {metric: float("nan") if value is None else value}


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[None]:
    """Let what a training prints go to a file of its run folder, from rank 0."""
    if path is None:
        yield
        return
    with path.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


class OwnGroup(BackendConfig):
    """Tells the workers their ranks and where to meet, as torchrun does; the training makes the group itself."""

    backend: str | None = None
    """`TorchTrainer` fills it in; the training chooses by itself."""

    @property
    def backend_cls(self) -> type[Backend]:
        """See `BackendConfig`."""
        return _Meeting


class _Meeting(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address, port = worker_group.execute_single(0, _free_place)
        worker_group.execute(_announce, address, port)


def _free_place() -> tuple[str, int]:
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.bind(("", 0))
        return address, sock.getsockname()[1]


def _announce(address: str, port: int) -> None:
    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
    }
