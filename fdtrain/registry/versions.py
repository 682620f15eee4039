"""Versions in the registry: their names, what they are registered with, and their aliases."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_shards.schema import Quality, quality_name
from fdtrain.models.card import CARD_KEY, MODEL_NAME
from fdtrain.registry.challenge import Verdict
from fdtrain.registry.logged import DetectorFlavor, Flavor
from fdtrain.tracking import connect

CHALLENGER = "challenger"
"""Alias of the newest version that lost against the champion."""

STEP_TAG = "fdtrain.step"
"""Tag of a version: the step of its run that the model is of."""

MAX_TEXT = 5000
"""Characters of a description that MLflow's database has room for."""


@dataclass(frozen=True)
class Registered:
    """A new version in the registry.

    Args:
        name: Of the registered model.
        version: Its number.
        verdict: Whether it became champion, and why.
    """

    name: str
    version: str
    verdict: Verdict


def registered_name(model: str, quality: Quality, is_mixed: bool = False) -> str:
    """`fdtrain-<model>-q<quality>`; for the set without a JPEG step `fdtrain-<model>-raw`. MLflow takes no slash.

    One trained on other qualities too (`is_mixed`) is `fdtrain-<model>-mixed-q<quality>`: it competes with its like,
    and a router over the qualities leaves it out.
    """
    return f"{name_prefix(model)}{'mixed-' if is_mixed else ''}{quality_name(quality)}"


def name_prefix(model: str) -> str:
    """What the names of a model's versions of all qualities, and of its router, begin with."""
    return f"fdtrain-{model.replace('/', '-')}-"


def register(folder: Path, name: str, *, uri: str, run_id: str, step: int, tags: Mapping[str, str]) -> str:
    """Log a model folder to its MLflow run and register it; gives the version's number, which is no champion yet.

    Args:
        folder: The model folder.
        name: Of the registered model.
        uri: Tracking URI.
        run_id: MLflow run.
        step: Of the run's metrics that are the model's.
        tags: What else to write on the version (data digest, quality, git revision, its metrics).

    Raises:
        mlflow.exceptions.MlflowException: the server doesn't take it.
        FloatingPointError: the exported program's logits aren't the model's.
    """
    metadata = {CARD_KEY: json.loads((folder / MODEL_NAME).read_bytes())}
    return log_version(DetectorFlavor(folder), name, uri=uri, run_id=run_id, step=step, tags=tags, metadata=metadata)


def log_version(
    flavor: Flavor,
    name: str,
    *,
    uri: str,
    run_id: str,
    step: int,
    tags: Mapping[str, str],
    metadata: dict[str, Any],
) -> str:
    """Log a model in whatever form and make it a version. Args: and Raises: as `register`.

    Where the run has registered this step before, as one that was killed right after may have, that version is given.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for before in client.search_model_versions(f"name='{name}' and run_id='{run_id}'"):
        if before.tags.get(STEP_TAG) == str(step):
            return str(before.version)
    mlflow.set_tracking_uri(uri)
    with _active_run(run_id):
        logged = mlflow.models.Model.log(
            None, flavor, name="model", flavor_name=flavor.name, step=step, metadata=metadata
        )
    made = client.create_model_version(
        name,
        logged.model_uri,
        run_id=run_id,
        model_id=logged.model_id,
        tags=dict(tags) | {STEP_TAG: str(step)},
    )
    return str(made.version)


def conclude_version(name: str, version: str, verdict: Verdict, text: str, *, uri: str) -> Registered:
    """Write down what became of a version: its alias where it is no champion, its verdict, its model card."""
    client = connect(uri)
    if not verdict.is_champion:
        client.set_registered_model_alias(name, CHALLENGER, version)
    client.set_model_version_tag(name, version, "verdict", verdict.reason)
    client.update_model_version(name, version, text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…")
    return Registered(name, version, verdict)


@contextlib.contextmanager
def _active_run(run_id: str) -> Iterator[None]:
    """MLflow's fluent API works on "the active run"; leave the status of the run as it is."""
    import mlflow

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    fault: Exception | None = None
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised below: MLflow would call the run itself failed
            fault = error
    if fault is not None:
        raise fault
