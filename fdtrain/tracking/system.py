"""What the hosts of a run do meanwhile: MLflow's own measurements of processors, memory, disk, network and GPUs."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fdtrain.tracking.outbox import Outbox, read_records

INTERVAL_S = 10.0  # unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise


@contextmanager
def watch_system(folder: Path | None) -> Iterator[None]:
    """Measure this host in the block, by the first rank on it, into a file that rank 0 sends with the rest.

    Args:
        folder: Of the run's records; None measures nothing.
    """
    if folder is None or os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    node = int(os.environ.get("GROUP_RANK", "0"))
    several = os.environ.get("LOCAL_WORLD_SIZE", "1") != os.environ.get("WORLD_SIZE", "1")
    stop = threading.Event()
    words = folder / f"system-{node}.jsonl", f"node-{node}" if several else None, stop
    thread = threading.Thread(target=_watch, args=words, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(INTERVAL_S)  # of a measurement under way


def _watch(path: Path, node: str | None, stop: threading.Event) -> None:
    from mlflow.environment_variables import (
        MLFLOW_SYSTEM_METRICS_NODE_ID,
        MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING,
        MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL,
    )

    node = MLFLOW_SYSTEM_METRICS_NODE_ID.get() or node
    prefix = f"system/{node}/" if node else "system/"
    interval = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or INTERVAL_S
    samples = MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING.get() or 1
    try:
        outbox = Outbox(path)
        step = sum(1 for _ in read_records(path))  # a resumed run counts on
        monitors = _monitors()
        while not stop.is_set():
            for _ in range(samples):
                for monitor in monitors:
                    monitor.collect_metrics()
                if stop.wait(interval):
                    break
            values = {prefix + name: value for part in monitors for name, value in part.aggregate_metrics().items()}
            for monitor in monitors:
                monitor.clear_metrics()
            outbox.append("metrics", {"step": step, "values": values})
            step += 1
        outbox.close()
    except Exception as error:  # noqa: BLE001 - a driver, a full disk: nothing that training should end for
        print(f"warning: no more system metrics ({type(error).__name__}: {error}); training goes on", file=sys.stderr)


def _monitors() -> list[Any]:
    """MLflow's. Its `SystemMetricsMonitor` around them talks to the server itself, and ends when that is away."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError):  # how it says that there is no NVIDIA GPU
        return monitors
    return monitors
