"""The way to an MLflow server or database."""

import fcntl
import logging
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

SQLITE_PREFIX = "sqlite:///"


def tracking_uri(configured: str) -> str:
    """The tracking URI in force: `MLFLOW_TRACKING_URI` wins over the configured one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or configured


def lasting_uri(uri: str) -> str:
    """A tracking URI as it may be written down: a database by its whole path, a server without name and password."""
    if uri.startswith(SQLITE_PREFIX):
        return SQLITE_PREFIX + str(Path(uri.removeprefix(SQLITE_PREFIX)).absolute())
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


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


def experiment_id(client: Any, uri: str, name: str) -> str:
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
