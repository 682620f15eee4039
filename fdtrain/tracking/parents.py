"""Runs that belong together, such as those of a sweep: children of one MLflow run that trains nothing itself."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fdtrain.config import TrackingConfig, first_line
from fdtrain.config.credentials import shown_uri
from fdtrain.tracking.client import connect, experiment_id

PARENT_TAG, GROUP_TAG = "mlflow.parentRunId", "fdtrain.group"


def open_parent_run(uri: str, experiment: str, name: str, tags: Mapping[str, str] | None = None) -> str | None:
    """Find or make the MLflow run that children with `tracking.parent: NAME` hang under, and set it running.

    Args:
        uri: Tracking URI.
        experiment: Name of the experiment, that of the children.
        name: Of the sweep or study; the same name is the same run, so that one that goes on keeps its parent.
        tags: What else to write on it.

    Returns:
        Its run id; None where the server isn't there, which is said on stderr. The first child that reaches the server
        makes it then.

    Raises:
        UserError: the name is none for `tracking.parent`.
    """
    TrackingConfig(parent=name).validate()
    try:
        client = connect(uri)
        run_id = parent_run(client, experiment_id(client, uri, experiment), name)
        client.update_run(run_id, "RUNNING")
        for key, value in (tags or {}).items():
            client.set_tag(run_id, key, value)
        return run_id
    except Exception as error:  # noqa: BLE001 - any fault of a server or its client; the sweep must go on
        _warn(
            f"{name} has no MLflow run yet: {shown_uri(uri)} is not taking records "
            f"({first_line(error)}); its runs go on"
        )
        return None


def close_parent_run(uri: str, run_id: str | None, status: str = "FINISHED") -> None:
    """End it: MLflow's "FINISHED", "FAILED" or "KILLED". A server that isn't there is said on stderr."""
    if run_id is None:
        return
    try:
        connect(uri).set_terminated(run_id, status)
    except Exception as error:  # noqa: BLE001 - as above
        _warn(f"MLflow run {run_id} stays open: {shown_uri(uri)} is not taking records ({first_line(error)})")


def log_to_parent_run(uri: str, run_id: str | None, folder: Path, place: str) -> None:
    """Write the files of a folder as artifacts of it, below `place`. A server that isn't there is said on stderr."""
    if run_id is None:
        return
    try:
        connect(uri).log_artifacts(run_id, str(folder), place)
    except Exception as error:  # noqa: BLE001 - as above
        _warn(f"MLflow run {run_id} has no {place}: {shown_uri(uri)} is not taking records ({first_line(error)})")


def parent_run(client: Any, experiment: str, parent: str) -> str:
    """Run id of a parent that is given by id or name; one of that name is made if need be.

    Of two that are made at the same moment the earlier stays.
    """
    if re.fullmatch("[0-9a-f]{32}", parent):
        return parent
    if found := _of_group(client, experiment, parent):
        return found[0]
    made = client.create_run(experiment, tags={GROUP_TAG: parent}, run_name=parent).info.run_id
    first = _of_group(client, experiment, parent)[0]
    if made != first:
        client.delete_run(made)
    return first


def _of_group(client: Any, experiment: str, name: str) -> list[str]:
    order = ["attributes.start_time ASC", "attributes.run_id ASC"]
    found = client.search_runs([experiment], f"tags.`{GROUP_TAG}` = '{name}'", order_by=order, max_results=10)
    return [run.info.run_id for run in found]


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
