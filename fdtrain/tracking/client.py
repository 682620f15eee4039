"""The way to an MLflow server or database."""

import fcntl
import logging
import os
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from fdtrain.config import UserError, first_line

SQLITE_PREFIX = "sqlite:///"
VARIABLE = "MLFLOW_TRACKING_URI"

KNOCK_S = 5.0
"""How long a server may take to take a connection."""


def tracking_uri(configured: str) -> str:
    """The tracking URI in force: `MLFLOW_TRACKING_URI` wins over the configured one."""
    return os.environ.get(VARIABLE) or configured


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


def knock(uri: str) -> str:
    """What is wrong with the way to a server; empty where it takes connections."""
    parts = urlsplit(uri)
    try:
        address = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        return first_line(error)
    try:
        socket.create_connection(address, KNOCK_S).close()
    except OSError as error:
        return error.strerror or first_line(error)
    return ""


def must_be_there(uri: str) -> None:
    """Raise UserError where there is nothing to ask: no database, or no server that takes connections.

    MLflow's client would make a database, or try a server again for minutes.
    """
    parts = urlsplit(uri)
    if uri.startswith(SQLITE_PREFIX) and not Path(uri.removeprefix(SQLITE_PREFIX)).exists():
        raise UserError(f"{uri}: no such database, so nothing is registered; name the one that has it by {VARIABLE}")
    by_proxy = parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")
    if parts.scheme in ("http", "https") and not by_proxy and (fault := knock(uri)):
        shown = lasting_uri(uri)
        raise UserError(f"{shown}: no MLflow server answers ({fault}); start it, or name another by {VARIABLE}")


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
