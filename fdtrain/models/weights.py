"""A model as a folder: `model.safetensors` and `model.json`, which says how to build it and what input it takes."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datasets_shards.schema import write_atomic
from fdtrain.config import DEFAULT_TRACKING_URI, UserError
from fdtrain.models.registry import InputSpec, create_model

WEIGHTS_NAME = "model.safetensors"
CARD_KEY = "fdtrain"
"""Where the metadata of a model logged to MLflow holds the content of its `model.json`."""
MODEL_NAME = "model.json"


def save_model(
    folder: Path,
    state: dict[str, Tensor],
    *,
    name: str,
    options: dict[str, Any],
    spec: InputSpec,
    facts: dict[str, Any],
    results: dict[str, Any] | None = None,
) -> None:
    """Write a model folder.

    Args:
        folder: An existing folder.
        state: The model's `state_dict`, tensors of any device and memory format.
        name: Name for `create_model`.
        options: Options for `create_model`.
        spec: The input that the model was trained on.
        facts: What it was trained on (quality, data digest, git revision), JSON values.
        results: How it did, where that is known (step, metrics), JSON values.
    """
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, folder / WEIGHTS_NAME)
    # `pretrained` is how training began; whoever loads the folder needs no ImageNet weights.
    options = {key: value for key, value in options.items() if key != "pretrained"}
    content = {"name": name, "options": options, "input": asdict(spec), "trained_on": facts, "results": results}
    write_atomic(folder / MODEL_NAME, json.dumps(content, indent=2).encode() + b"\n")


def read_model_card(folder: Path) -> dict[str, Any]:
    """`model.json` of a model folder, its "input" as an `InputSpec`. Raises UserError where it can't be read."""
    path = folder / MODEL_NAME
    try:
        return _parse_card(json.loads(path.read_bytes()), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so {folder} is neither a run, a checkpoint nor a model") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: damaged ({error}); take another checkpoint") from None


def _parse_card(content: dict[str, Any], place: str) -> dict[str, Any]:
    try:
        spec = content["input"]
        given = InputSpec(spec["size"], tuple(spec["mean"]), tuple(spec["std"]), spec["interpolation"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{place}: says nothing usable of the model's input ({error!r}); take another model") from None
    return content | {"input": given}


def load_model(place: str | Path) -> nn.Module:
    """The model of a run, a checkpoint, a model folder or a registered version, in evaluation mode on the CPU.

    Args: and Raises: as `open_model`.
    """
    return open_model(place)[0]


def open_model(place: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """A model and what its `model.json` says, "input" as an `InputSpec`.

    Args:
        place: A run folder (its best model), a checkpoint or model folder, or an MLflow URI (`models:/name@champion`).

    Raises:
        UserError: there is no model, or its weights don't fit.
    """
    if str(place).startswith(("models:/", "runs:/")):
        return _open_registered(str(place))
    folder = model_folder(Path(place))
    card = read_model_card(folder)
    model = create_model(card["name"], **card["options"])
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_NAME))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / WEIGHTS_NAME}: not loadable as {card['name']} ({reason})") from None
    # safetensors keeps no memory format; convolutions are fastest in this one.
    return model.to(memory_format=torch.channels_last).eval(), card


def model_folder(place: Path) -> Path:
    """The folder with the weights: `place` itself, or the best model of the run folder `place`."""
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; --model takes a run folder, a checkpoint or a models:/ URI")
    best = place / "best"
    return best if best.is_dir() and not (place / MODEL_NAME).exists() else place


def _open_registered(uri: str) -> tuple[nn.Module, dict[str, Any]]:
    import mlflow
    from mlflow.exceptions import MlflowException

    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
    mlflow.set_tracking_uri(tracking_uri)
    try:
        metadata = mlflow.models.get_model_info(uri).metadata or {}
        model = mlflow.pytorch.load_model(uri)
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{uri}: {reason} (tracking URI {tracking_uri}; set MLFLOW_TRACKING_URI)") from None
    if CARD_KEY not in metadata:
        raise UserError(f"{uri}: not logged by fdtrain, so its input is unknown; take one that is")
    return model, _parse_card(metadata[CARD_KEY], uri)
