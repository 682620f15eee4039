"""The way to an MLflow server or database."""

import fcntl
import json
import logging
import os
import socket
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from fdtrain.config import UserError, first_line
from fdtrain.config.credentials import URI_VARIABLE, clean_environment, move_credentials, shown_uri

SQLITE_PREFIX = "sqlite:///"

ARTIFACTS = "mlartifacts"
"""Folder beside a sqlite database."""
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database with the places of artifacts."""

COLUMNS = ["params.`model.name`", "params.`data.quality`", "metrics.`val/video/auc`", "metrics.`test/video/auc`"]
VIEW_KEY = "viewStateShareKey=fdtrain&workflowType=machine_learning"
VIEW = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.sharedViewState.fdtrain": json.dumps(
        {"selectedColumns": COLUMNS, "orderByKey": "metrics.`val/video/auc`", "orderByAsc": False}
    ),
}
"""Tags by which MLflow's pages open an experiment as one of model training, and show its runs with these columns."""

KNOCK_S = 5.0
"""How long a server may take to take a connection."""


def tracking_uri(configured: str) -> str:
    """The tracking URI in force: `MLFLOW_TRACKING_URI` wins over the configured one.

    Credentials of a server are in the environment; those of a database are in the URI: print it as `lasting_uri` does.
    """
    clean_environment()
    return os.environ.get(URI_VARIABLE) or move_credentials(configured)


def lasting_uri(uri: str) -> str:
    """A tracking URI as it may be written down: a database by its whole path, a server without name and password."""
    if uri.startswith(SQLITE_PREFIX):
        return SQLITE_PREFIX + str(Path(uri.removeprefix(SQLITE_PREFIX)).absolute())
    return shown_uri(uri)


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
        find_artifacts(database)
    return client


def find_artifacts(database: Path) -> None:
    """Let a database that was moved with the artifacts beside it find them again.

    MLflow makes every location absolute when it is written.
    """
    here = (database.parent / ARTIFACTS).resolve()
    if not here.is_dir():
        return
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (location,) in found:
            there = str(location or "")
            path = Path(unquote(urlsplit(there).path))
            if not there.startswith("file:") or path.name != ARTIFACTS or path == here or path.exists():
                continue
            for table, column in _LOCATIONS:
                lies_there = f"substr({column} || '/', 1, ?2) = ?3"
                connection.execute(
                    f"UPDATE {table} SET {column} = ?1 || substr({column}, ?2) WHERE {lies_there}",
                    (here.as_uri(), len(there) + 1, f"{there}/"),
                )


def knock(uri: str) -> str:
    """What is wrong with the way to a server; empty where it takes connections, or a proxy would."""
    parts = urlsplit(uri)
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname or ""):
        return ""
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
    if uri.startswith(SQLITE_PREFIX):
        database = Path(uri.removeprefix(SQLITE_PREFIX))
        if not database.exists():
            raise UserError(
                f"{uri}: no such database, so nothing is registered; name the one that has it by {URI_VARIABLE}"
            )
        connect(uri)  # which follows a database that was moved
    if parts.scheme in ("http", "https") and (fault := knock(uri)):
        shown = lasting_uri(uri)
        raise UserError(f"{shown}: no MLflow server answers ({fault}); start it, or name another by {URI_VARIABLE}")


def experiment_id(client: Any, uri: str, name: str) -> str:
    """Id of the experiment, made if need be; with a sqlite store its artifacts lie beside the database."""
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith(SQLITE_PREFIX):
        location = (Path(uri.removeprefix(SQLITE_PREFIX)).parent / ARTIFACTS).resolve().as_uri()
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        made = client.create_experiment(name, artifact_location=location, tags=VIEW)
        client.set_experiment_tag(made, "mlflow.note.content", f"[Runs by AUC](#/experiments/{made}/runs?{VIEW_KEY})")
        return made
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
