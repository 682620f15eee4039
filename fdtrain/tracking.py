"""MLflow: parameters and metrics of a run, sent by rank 0 from a thread of its own.

A tracking server that is slow or down never stops or delays a training step: what it misses is counted and said, and
`log.jsonl` and `metrics.json` of the run folder hold every number all the same.
"""

import fcntl
import logging
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fdtrain.config import Config, flatten

SQLITE_PREFIX = "sqlite:///"
CLOSE_TIMEOUT_S = 60.0


def tracking_uri(configured: str) -> str:
    """The tracking URI in force: `MLFLOW_TRACKING_URI` wins over the configured one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or configured


class Tracker:
    """Sends one run's records to MLflow, in order, off the training thread.

    Args:
        config: Of the run.
        facts: What else identifies it (data digest, git revision), logged as tags.
        run_id: The MLflow run to go on with; a new one if None.
    """

    def __init__(self, config: Config, facts: Mapping[str, str], run_id: str | None = None) -> None:
        self.uri = tracking_uri(config.tracking.uri)
        self.run_id = run_id
        self.missed = 0
        self._client: Any = None
        self._queue: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._queue.put(("start the run", lambda: self._start(config, facts)))
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log values at an optimizer step; one that is not finite is left out."""
        now = int(time.time() * 1000)
        defined = {name: value for name, value in metrics.items() if math.isfinite(value)}

        def send() -> None:
            from mlflow.entities import Metric  # here, or the training thread would pay for the import

            values = [Metric(name, value, now, step) for name, value in defined.items()]
            self._client.log_batch(self.run_id, metrics=values)

        self._put("metrics", send)

    def log_file(self, path: Path) -> None:
        """Log a file of the run folder as an artifact."""
        self._put(path.name, lambda: self._client.log_artifact(self.run_id, str(path)))

    def close(self, status: str) -> None:
        """Send what is left, end the MLflow run and warn of what did not arrive.

        Args:
            status: MLflow's "FINISHED", "FAILED" or "KILLED".
        """
        self._put("end of the run", lambda: self._client.set_terminated(self.run_id, status))
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self._warn(f"MLflow at {self.uri} did not take the last records within {CLOSE_TIMEOUT_S:.0f} s")
        elif self.missed:
            self._warn(f"MLflow at {self.uri} missed {self.missed} records; the run folder has them all")

    def _put(self, what: str, send: Callable[[], None]) -> None:
        self._queue.put((what, send))

    def _work(self) -> None:
        while job := self._queue.get():
            what, send = job
            try:
                if what != "start the run" and self.run_id is None:
                    raise ConnectionError("the MLflow run could not be started")
                send()
            except Exception as error:  # noqa: BLE001 - any fault of a server or its client; training must go on
                if not self.missed:
                    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                    self._warn(f"MLflow at {self.uri} is not taking records ({what}: {reason}); training goes on")
                self.missed += 1

    def _start(self, config: Config, facts: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        self._client = connect(self.uri)
        if self.run_id is None:
            experiment = _experiment_id(self._client, self.uri, config.tracking.experiment)
            run = self._client.create_run(experiment, run_name=config.run_dir.name)
            params = [Param(key, str(value)) for key, value in flatten(config.to_dict()).items()]
            tags = [RunTag(key, value) for key, value in facts.items()]
            self._client.log_batch(run.info.run_id, params=params, tags=tags)
            self.run_id = run.info.run_id
        else:
            self._client.update_run(self.run_id, "RUNNING")  # fails where the server doesn't know the run

    @staticmethod
    def _warn(message: str) -> None:
        print(f"warning: {message}", file=sys.stderr)


def connect(uri: str) -> Any:
    """An `MlflowClient`. A fresh sqlite file is set up by one process while others wait: its migrations can't race."""
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its INFO is the migrations of a fresh database
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if not uri.startswith(SQLITE_PREFIX):
        return MlflowClient(uri)
    database = Path(uri.removeprefix(SQLITE_PREFIX))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)  # opens the store, which is what migrates it
    return client


def _experiment_id(client: Any, uri: str, name: str) -> str:
    """Id of the experiment, made if need be; with a sqlite store its artifacts lie beside the database."""
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith(SQLITE_PREFIX):
        location = (Path(uri.removeprefix(SQLITE_PREFIX)).parent / "mlartifacts").resolve().as_uri()
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another run made it in between
            return found.experiment_id
        raise


def git_revision() -> str:
    """Revision of the code, "-dirty" added where files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
