"""Registered models: their folder out of MLflow.

Whatever else lies in the registry is left where it is: `mlflow.pytorch.load_model` would unpickle it, which is running
whatever somebody put there.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fdtrain.config import DEFAULT_TRACKING_URI, UserError, first_line
from fdtrain.config.credentials import shown_uri
from fdtrain.models.card import CARD_KEY, MODEL_NAME
from fdtrain.tracking.client import must_be_there
from fdtrain.tracking.client import tracking_uri as uri_in_force

FOLDER = "fdtrain"
"""Where a logged model has the model folder, beside MLflow's own files."""


def is_registered(place: object) -> bool:
    """Whether a place is an MLflow URI."""
    return str(place).startswith(("models:/", "runs:/"))


ROUTER_KEY = "fdtrain-router"
"""Where the metadata of a logged router holds the content of its `router.json`."""


@contextmanager
def registered_folder(uri: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """The model folder of a logged model, fetched for as long as the context lasts.

    Args:
        uri: `models:/name@alias`, `models:/name/version`, `models:/model-id` or `runs:/run-id/name`.
        tracking_uri: Of the server. Default: `MLFLOW_TRACKING_URI`, or the configuration's default.

    Raises:
        UserError: there is no such model, the tracking server doesn't answer, or the model has no model folder.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    metadata = registered_metadata(uri, tracking_uri)
    if ROUTER_KEY in metadata:
        raise UserError(f"{uri}: a router, which is several models; take one of {', '.join(_models_of(metadata))}")
    if CARD_KEY not in metadata:
        raise UserError(f"{uri}: not logged by fdtrain, so its input is unknown; take one that is")
    with tempfile.TemporaryDirectory(prefix="fdtrain-") as fetched:
        try:
            get_artifact_repository(uri).download_artifacts(FOLDER, fetched)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"{uri}: holds no folder {FOLDER} to be had ({first_line(error)}); take the folder of the run that it "
                "came from"
            ) from None
        # Where below it lies depends on the kind of the URI.
        found = next(Path(fetched).rglob(MODEL_NAME), None)
        if found is None:
            raise UserError(f"{uri}: holds no {FOLDER}/{MODEL_NAME}; take the folder of the run that it came from")
        yield found.parent


def registered_metadata(uri: str, tracking_uri: str | None = None) -> dict[str, Any]:
    """What a logged model says of itself: the content of `model.json` or `router.json`, by `CARD_KEY` or `ROUTER_KEY`.

    Args: as `registered_folder`.

    Raises:
        UserError: there is no such model, or the tracking server doesn't answer.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models.model import MLMODEL_FILE_NAME
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # for two small files
    tracking_uri = tracking_uri or uri_in_force(DEFAULT_TRACKING_URI)
    must_be_there(tracking_uri)
    mlflow.set_tracking_uri(tracking_uri)
    # `mlflow.models.get_model_info` leaves what it has fetched in the folder for temporary files.
    with tempfile.TemporaryDirectory(prefix="fdtrain-") as fetched:
        try:
            path = get_artifact_repository(uri).download_artifacts(MLMODEL_FILE_NAME, fetched)
            return mlflow.models.Model.load(path).metadata or {}
        except (MlflowException, OSError) as error:
            at = f"tracking URI {shown_uri(tracking_uri)}; set MLFLOW_TRACKING_URI"
            raise UserError(f"{uri}: {first_line(error)} ({at})") from None


def _models_of(metadata: dict[str, Any]) -> list[str]:
    return [model["uri"] for model in metadata[ROUTER_KEY]["models"].values()]
