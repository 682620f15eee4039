"""What Ray runs: a trial, and in it the ordinary training in a `TorchTrainer`.

Imports Ray, so it is imported where a search begins, and on the nodes.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.train import ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from datasets_shards.schema import ShardSetError
from fdtrain.cli import training_config
from fdtrain.config import HostError, UserError
from launch.sweep.plan import Plan

LOCK_WAIT_S = 60.0
"""How long the workers of a driver that was killed may take to notice."""

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


def run_trial(task: dict[str, Any], plan: Plan, places: Places) -> None:
    """One trial, from where it stands. What Ray Tune calls.

    A failure that would come again is reported as a result; what Ray makes of an exception is another attempt.
    """
    number = task["number"]
    resources: dict[str, float] = {"CPU": places.cpus}
    if places.gpus:
        resources["GPU"] = places.gpus
    callback: Any = TuneReportCallback()
    trainer = TorchTrainer(
        _train,
        train_loop_config={
            "words": plan.trial_words(number, task["settings"]),
            "folder": str(plan.trial_folder(number)),
            "metric": plan.sweep.metric,
            "places": places,
        },
        torch_config=OwnGroup(),
        scaling_config=ScalingConfig(
            num_workers=places.workers, use_gpu=bool(places.gpus), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=f"trial-{number:03d}", storage_path=str(plan.folder / "ray"), callbacks=[callback]
        ),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        fault = _would_come_again(error)
        if fault is None:
            raise
        tune.report({"failed": fault})


def _would_come_again(error: ray.train.WorkerGroupError) -> str | None:
    """The reason, where settings or data are to blame; None for what another attempt may get over."""
    for failure in error.worker_failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            name = type(cause).__name__
            if isinstance(cause, HostError):
                return None
            if isinstance(cause, UserError | ShardSetError | FloatingPointError) or name == "OutOfMemoryError":
                return " ".join(str(cause).split()) or name
            cause = getattr(cause, "cause", None) or cause.__cause__
    return None


def _train(given: dict[str, Any]) -> None:
    """On each worker."""
    import torch

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
        _wait_for_lock(folder)
    clock = time.monotonic()
    epochs = 0

    def report(epoch: int, metrics: dict[str, float]) -> None:
        nonlocal clock, epochs
        if epoch > epochs:
            now = time.monotonic()
            values = {"epoch": epoch, given["metric"]: metrics[given["metric"]], "seconds": now - clock}
            clock, epochs = now, epoch
            ray.train.report(values)

    for epoch, metrics in enumerate(_validations(folder, given["metric"]), start=1):
        report(epoch, metrics)
    clock = time.monotonic()
    with _output(folder / OUTPUT if rank == 0 else None):
        train(config, report)
    ray.train.report({"epoch": epochs, "finished": True})


def _validations(folder: Path, metric: str) -> Iterator[dict[str, float]]:
    """What a run that goes on has measured already, an epoch each."""
    log = folder / "log.jsonl"
    if not log.exists():
        return
    found = {}
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            record = json.loads(line)
            if metric in record:
                found[record["step"]] = record[metric]
    for _, value in sorted(found.items()):
        yield {metric: float("nan") if value is None else value}


def _wait_for_lock(folder: Path) -> None:
    from fdtrain.run_folder import FolderInUseError, RunFolder

    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        run = RunFolder(folder)
        try:
            run.claim(resume=True)
        except FolderInUseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            run.release()
            return


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[None]:
    """Let what a training prints go to a file of its run folder, from rank 0."""
    if path is None:
        yield
        return
    with path.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


class OwnGroup(TorchConfig):
    """Tells the workers their ranks and where to meet, as torchrun does; the training makes the group itself."""

    @property
    def backend_cls(self) -> type[Backend]:
        """See `TorchConfig`."""
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
