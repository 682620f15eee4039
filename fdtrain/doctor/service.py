"""MLflow: whether it takes records. A run goes on without it, so nothing here is more than a warning."""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fdtrain.config import first_line
from fdtrain.config.credentials import shown_uri
from fdtrain.doctor.disk import existing, network_file_system
from fdtrain.doctor.report import Finding
from fdtrain.tracking import SQLITE_PREFIX, connect, tracking_uri
from fdtrain.tracking.client import knock

SECONDS = 5.0
REMEDY = "start it, or correct MLFLOW_TRACKING_URI or --tracking.uri; a run goes on without it and keeps its numbers"


def check_mlflow(configured: str) -> Iterator[Finding]:
    """Whether the database can be written, or the server answers."""
    uri = tracking_uri(configured)
    if uri.startswith(SQLITE_PREFIX):
        yield _database(uri)
        if kind := network_file_system(existing(Path(uri.removeprefix(SQLITE_PREFIX)).parent)):
            detail = f"{uri}: is on {kind}, a network file system, whose locks sqlite can't rely on"
            remedy = "name a server (mlflow server) by MLFLOW_TRACKING_URI, or a database on a local disk"
            yield Finding("warning", "MLflow disk", detail, remedy)
        return
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and (fault := knock(uri)):
        yield Finding("warning", "MLflow", f"{shown_uri(uri)} can't be reached ({fault})", REMEDY)
        return
    yield _server(uri)


def _database(uri: str) -> Finding:
    """Not by MLflow, which would make the database, or bring an older one up to date."""
    path = Path(uri.removeprefix(SQLITE_PREFIX))
    remedy = "choose another --tracking.uri, or see who holds it; a run goes on without it and keeps its numbers"
    if not path.exists():
        folder = existing(path.parent)
        try:
            with tempfile.TemporaryFile(dir=folder):
                return Finding("ok", "MLflow", f"{uri}: the first run will make it")
        except OSError as error:
            return Finding("warning", "MLflow", f"{uri}: {folder} can't be written ({error.strerror})", remedy)
    try:
        # mode=rw makes no file; the lock that a writer needs shows that it may write and nobody keeps it from it.
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", timeout=SECONDS, uri=True)
        try:
            database.execute("BEGIN IMMEDIATE")
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            database.execute("ROLLBACK")
        finally:
            database.close()
    except sqlite3.Error as error:
        return Finding("warning", "MLflow", f"{uri}: can't be written ({first_line(error)})", remedy)
    if tables and "experiments" not in tables:
        return Finding("warning", "MLflow", f"{uri}: is a database of something else than MLflow", remedy)
    return Finding("ok", "MLflow", f"{uri} can be written")


def _server(uri: str) -> Finding:
    """By MLflow's own client, so with its credentials and certificates, but without its patience."""
    before = {name: os.environ.get(name) for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")}
    os.environ.update(MLFLOW_HTTP_REQUEST_TIMEOUT=f"{SECONDS:.0f}", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    try:
        client = connect(uri)
        found = client.search_experiments(max_results=1)
        knows_models = _knows_models(client, found[0].experiment_id if found else "0")
    except Exception as error:  # noqa: BLE001 - any fault of a server or its client, as in `fdtrain.tracking`
        fault = first_line(error)[:200]
        return Finding("warning", "MLflow", f"{shown_uri(uri)} doesn't answer as it should ({fault})", REMEDY)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    if not knows_models:
        said = f"{shown_uri(uri)} knows no logged models: metrics go there without a link to their model"
        return Finding("warning", "MLflow", said, "take a server of MLflow 3: this one can't register models")
    return Finding("ok", "MLflow", f"{shown_uri(uri)} answers" + ("" if found else "; it has no experiment yet"))


def _knows_models(client: Any, experiment: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.search_logged_models([experiment], max_results=1)
    except MlflowException as error:
        if error.error_code != "ENDPOINT_NOT_FOUND":
            raise
        return False
    return True
