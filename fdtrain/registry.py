"""The MLflow model registry: versions of `fdtrain-<model>-q<quality>`, and who is champion."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_shards.schema import Quality, quality_name
from fdtrain.export import portable
from fdtrain.metrics import SELECTION_METRIC
from fdtrain.models.card import CARD_KEY, MODEL_NAME, weights_file
from fdtrain.models.registered import FOLDER
from fdtrain.models.weights import open_model
from fdtrain.tracking import connect

CHAMPION = "champion"


@dataclass(frozen=True)
class Registered:
    """A new version in the registry.

    Args:
        name: Of the registered model.
        version: Its number.
        is_champion: Whether the alias moved to it.
        reason: Why, or why not.
    """

    name: str
    version: str
    is_champion: bool
    reason: str


def registered_name(model: str, quality: Quality) -> str:
    """`fdtrain-<model>-q<quality>`; for the set without a JPEG step `fdtrain-<model>-raw`. MLflow takes no slash."""
    return f"fdtrain-{model.replace('/', '-')}-{quality_name(quality)}"


def register(folder: Path, name: str, value: float, *, uri: str, run_id: str, tags: dict[str, str]) -> Registered:
    """Log a model folder to its MLflow run and register it.

    What is logged holds the model twice: as a program for whoever has only torch and MLflow, and as the folder itself,
    which is what `open_model` takes. The first version becomes champion; a later one only by a better `val/video/auc`.

    Args:
        folder: The model folder.
        name: Of the registered model.
        value: Its `val/video/auc`; NaN where that is undefined.
        uri: Tracking URI.
        run_id: MLflow run.
        tags: What else to write on the version (data digest, quality, git revision).

    Raises:
        mlflow.exceptions.MlflowException: the server doesn't take it.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    model, card = open_model(folder)
    side = card["input"].size
    # Two images: torch.export takes a batch of one for a constant, and the model would refuse any other batch.
    example = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, 3, side, side))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, 2))]),
    )
    client = connect(uri)
    mlflow.set_tracking_uri(uri)
    with _active_run(run_id):
        logged = mlflow.models.Model.log(
            None,
            _Flavor(folder),
            name="model",
            flavor_name="pytorch",
            pytorch_model=model.to(memory_format=torch.contiguous_format),
            signature=signature,
            input_example=example,
            serialization_format="pt2",  # a graph, not pickled code
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
            metadata={CARD_KEY: json.loads((folder / MODEL_NAME).read_bytes())},
        )
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name, logged.model_uri, run_id=run_id, model_id=logged.model_id, tags=tags | {SELECTION_METRIC: repr(value)}
    ).version
    is_champion, reason = _challenge(client, name, value)
    if is_champion:
        client.set_registered_model_alias(name, CHAMPION, version)
    return Registered(name, str(version), is_champion, reason)


class _Flavor:
    """How `mlflow.models.Model.log` writes a model: as `mlflow.pytorch`, with a portable program and the model folder.

    Args:
        folder: The model folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save_model(self, path: str, **options: Any) -> None:
        """Write the model to a folder; `options` are those of `mlflow.pytorch.save_model`."""
        import mlflow

        mlflow.pytorch.save_model(path=path, **options)
        exported = Path(path) / "data" / "model.pt2"
        part = exported.with_suffix(".part.pt2")
        torch.export.save(portable(torch.export.load(exported)), part)
        part.replace(exported)
        kept = Path(path) / FOLDER
        kept.mkdir()
        for file in (weights_file(self.folder), self.folder / MODEL_NAME):
            shutil.copyfile(file, kept / file.name)


def _challenge(client: Any, name: str, value: float) -> tuple[bool, str]:
    aliases = client.get_registered_model(name).aliases
    if CHAMPION not in aliases:
        return True, "the first version"
    incumbent = client.get_model_version(name, aliases[CHAMPION])
    best = float(incumbent.tags.get(SELECTION_METRIC, "nan"))
    comparison = f"{SELECTION_METRIC} {value:.4f} against {best:.4f} of version {incumbent.version}"
    # A champion whose metric is undefined gives way to any defined one.
    return value > best or (math.isnan(best) and not math.isnan(value)), comparison


@contextlib.contextmanager
def _active_run(run_id: str) -> Iterator[None]:
    """MLflow's fluent API works on "the active run"; leave the status of the run as it is."""
    import mlflow

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        yield
