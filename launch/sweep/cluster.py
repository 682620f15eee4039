"""Where trials run: a Ray of this host's own or one that is there, its room, and whether its nodes see the data."""

import logging
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdtrain.config import UserError, first_line
from launch.ray_address import cluster_address
from launch.sweep.config import SweepConfig
from launch.sweep.plan import Plan

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Trials that lose a node start again by themselves.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # whoever was given no GPU sees none
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last word of a trial has none
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

ASKED = (
    "MLFLOW_TRACKING_URI",
    *(f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN", "SERVER_CERT_PATH", "INSECURE_TLS")),
    "MLFLOW_S3_ENDPOINT_URL",
    *(f"AWS_{name}" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "DEFAULT_REGION", "REGION")),
)
"""What trials ask the environment for, and should find there as it is here."""

CHECK_S = 120.0
SAID_AFTER_S = 60.0
END_S = 15.0


@dataclass(frozen=True)
class Cluster:
    """The nodes that are there.

    Args:
        nodes: Name -> CPUs and GPUs, under `CPU` and `GPU`.
        ids: Name -> Ray's id of the node.
    """

    nodes: dict[str, dict[str, float]]
    ids: dict[str, str]

    def gpus_per_worker(self, sweep: SweepConfig) -> float:
        """As set, else 1 where there are GPUs."""
        if sweep.gpus_per_worker is not None:
            return sweep.gpus_per_worker
        return 1.0 if any(node.get("GPU") for node in self.nodes.values()) else 0.0

    def parallel(self, sweep: SweepConfig) -> int:
        """How many trials run at a time.

        Raises:
            UserError: not even one does.
        """
        gpus = self.gpus_per_worker(sweep)
        wanted = {"CPU": float(sweep.cpus_per_worker), "GPU": gpus}
        for kind, key in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
            most = max(node.get(kind, 0.0) for node in self.nodes.values())
            if wanted[kind] > most:
                raise UserError(
                    f"{key}: {wanted[kind]:g} {kind}s of one node, and no node has more than {most:g}; lower it"
                )
        workers = sum(
            min(_places(node.get(kind, 0.0), share) for kind, share in wanted.items() if share)
            for node in self.nodes.values()
        )
        if workers < sweep.workers:
            raise UserError(
                f"workers: a trial has {sweep.workers} of {wanted['CPU']:g} CPUs and {gpus:g} GPUs each, and there is "
                f"room for {workers}; lower workers, cpus_per_worker or gpus_per_worker"
            )
        return min(workers // sweep.workers, sweep.max_concurrent or workers)


def _places(there: float, share: float) -> int:
    """How many of such shares there is room for; a part of a GPU is of one GPU."""
    if share < 1:
        return int(there) * int(1 / share + 1e-9)
    return int(there / share + 1e-9)


@contextmanager
def connected(sweep: SweepConfig) -> Iterator[Cluster]:
    """Join a cluster or start one on this host; at the end, nothing that was started is left.

    Raises:
        HostError: nobody answers at that address.
        UserError: there is no cluster.
    """
    os.environ |= ENVIRONMENT
    address = cluster_address(sweep.address, "address")
    import ray

    before = signal.getsignal(signal.SIGTERM)
    # The path of a socket has at most 107 characters, and Ray's are deep in its folder.
    folder = None if address else tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    own: dict[str, Any] = {}
    if address:  # whose processes have an environment of their own
        own = {
            "runtime_env": {"env_vars": ENVIRONMENT | {name: os.environ[name] for name in ASKED if name in os.environ}}
        }
    else:
        own = {"include_dashboard": False, "num_cpus": len(os.sched_getaffinity(0)), "_temp_dir": folder}
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it has to say is said by `progress`
    try:
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            if not address:
                raise
            raise UserError(f"address: no Ray cluster at {address} ({first_line(error)}); start one") from None
        # A batch system sends SIGTERM, and means Ctrl-C. Ray has set a handler of its own.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        alive = [node for node in ray.nodes() if node["Alive"]]
        names = {node["NodeID"]: f"{node['NodeManagerHostname']}" for node in alive}
        if len(set(names.values())) < len(alive):  # several on one host, as in tests of clusters
            names = {node["NodeID"]: f"{node.get('NodeName') or node['NodeID'][:8]}" for node in alive}
        if len(set(names.values())) < len(alive):
            names = {node["NodeID"]: f"{names[node['NodeID']]} ({node['NodeID'][:8]})" for node in alive}
        yield Cluster(
            {names[node["NodeID"]]: node["Resources"] for node in alive},
            {name: key for key, name in names.items()},
        )
    finally:
        _leave(folder)
        signal.signal(signal.SIGTERM, before)


def _leave(folder: str | None) -> None:
    """Leave the cluster; one of our own ends, with every process of it."""
    import psutil
    import ray

    started = psutil.Process().children(recursive=True) if folder else []
    ray.shutdown()
    _, left = psutil.wait_procs(started, timeout=END_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=END_S)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def check_nodes(cluster: Cluster, plan: Plan) -> list[str]:
    """Ask every node whether it sees the sweep's folder and the data; gives the digests of the shard sets.

    Raises:
        UserError: one doesn't, doesn't answer, or has other data than another.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        probe = plan.folder / f".probe-{uuid.uuid4().hex}"
        probe.write_text("seen")
    except OSError as error:
        raise UserError(f"storage: {plan.folder} can't be written ({error.strerror}); choose another folder") from None
    try:
        task: Any = ray.remote(look)
        asked = {
            name: task.options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)
            ).remote(plan, str(probe))
            for name, key in cluster.ids.items()
        }
        for name, answer in asked.items():
            try:
                fault, found[name], versions[name] = ray.get(answer, timeout=CHECK_S)
            except (ray.exceptions.RayError, TimeoutError) as error:
                fault = f"address: it doesn't answer ({reason_of(error)}); see the node's logs"
            if fault:
                key, _, text = fault.partition(": ")
                raise UserError(f"{key}: node {name}: {text}")
        first, *others = found
        for other in others:
            if versions[other] != versions[first]:
                differ = _difference(versions, first, other)
                raise UserError(
                    f"address: the nodes {first} and {other} have other versions ({differ}), so their trials can't be "
                    "compared; install the same"
                )
            if found[other] != found[first]:
                raise UserError(
                    f"data.root: {plan.base.data.root} isn't the same data on the nodes {first} and {other}"
                )
        return found[first]
    finally:
        probe.unlink(missing_ok=True)
        with suppress(OSError):  # what is not empty is a sweep's
            plan.folder.rmdir()
            plan.folder.parent.rmdir()


def wait_for(answer: Any, what: str) -> Any:
    """Wait for the result of a task; where it takes long, say once what the cluster has free."""
    import ray

    if not ray.wait([answer], timeout=SAID_AFTER_S)[0]:
        there, free = ray.cluster_resources(), ray.available_resources()
        places = ", ".join(
            f"{free.get(kind, 0):g} of {there[kind]:g} {kind}s" for kind in ("CPU", "GPU") if kind in there
        )
        print(f"{what}: not done after {SAID_AFTER_S:.0f} s; free in the cluster: {places}", flush=True)
    return ray.get(answer)


def reason_of(error: Exception) -> str:
    """Why a task failed, in one line: what it raised itself, where it did."""
    cause = getattr(error, "cause", None) or error
    return " ".join(str(cause).split()) or type(cause).__name__


def _difference(versions: dict[str, str], one: str, other: str) -> str:
    return " against ".join(
        ", ".join(sorted(set(versions[name].split(", ")) - set(versions[than].split(", ")))) or "less"
        for name, than in ((one, other), (other, one))
    )


def look(plan: Plan, probe: str) -> tuple[str, list[str], str]:
    """Return what is wrong on this node, if anything; digests of the shard sets; versions of the packages."""
    from datasets_shards.schema import ShardSetError
    from fdtrain.data.remote import open_cache, open_set
    from fdtrain.versions import versions_in_words

    if not Path(probe).is_file():
        where = f"storage: {Path(probe).parent} isn't the folder that the sweep writes to"
        return f"{where}; name one that all nodes share", [], ""
    data = plan.base.data
    try:
        root = data.root if "://" in data.root else str(Path(data.root))
        cache = open_cache(root, data.cache_dir, data.cache_bytes)
        qualities = dict.fromkeys([plan.quality, *data.training_qualities])
        digests = [open_set(root, quality, cache).shard_set.manifest.digest for quality in qualities]
        return "", digests, versions_in_words()
    except (UserError, ShardSetError, OSError) as error:
        return f"data.root: {error}", [], ""
