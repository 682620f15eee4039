"""A model as a folder: `model.safetensors` and `model.json`, which says how to build it and what input it takes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datasets_shards.schema import file_sha256, write_atomic
from fdtrain.config import UserError
from fdtrain.models.card import (
    CARD_KEY,
    EMA_NAME,
    MODEL_NAME,
    WEIGHTS_NAME,
    InputSpec,
    model_folder,
    read_model_card,
    weights_file,
)
from fdtrain.models.registered import is_registered, registered_folder
from fdtrain.models.registry import create_model

__all__ = [
    "CARD_KEY",
    "EMA_NAME",
    "MODEL_NAME",
    "WEIGHTS_NAME",
    "load_model",
    "model_folder",
    "open_model",
    "read_model_card",
    "save_model",
    "save_tensors",
]


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
    save_tensors({key: tensor.detach().cpu() for key, tensor in state.items()}, folder / WEIGHTS_NAME)
    # `pretrained` is how training began; whoever loads the folder needs no ImageNet weights.
    options = {key: value for key, value in options.items() if key != "pretrained"}
    digest = file_sha256(folder / WEIGHTS_NAME)
    content = {"name": name, "options": options, "input": asdict(spec), "trained_on": facts, "results": results}
    content["sha256"] = {WEIGHTS_NAME: digest}
    write_atomic(folder / MODEL_NAME, json.dumps(content, indent=2).encode() + b"\n")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that those may read whom the umask lets; the library's own is its owner's alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(mode)


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
    if not is_registered(place):
        return _open_folder(model_folder(Path(place)))
    with registered_folder(str(place)) as folder:
        try:
            return _open_folder(folder)
        except UserError as error:
            # The folder is gone in a moment; nobody could look there.
            raise UserError(f"{place}: {str(error).replace(f'{folder}/', '')}") from None


def _open_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    card = read_model_card(folder)
    weights = weights_file(folder)
    digest = card.get("sha256", {}).get(weights.name)
    if digest and weights.exists() and file_sha256(weights) != digest:
        raise UserError(f"{weights}: damaged, its SHA-256 isn't that in {MODEL_NAME}; take another model")
    model = create_model(card["name"], **card["options"])
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{weights}: not loadable as {card['name']} ({reason}); take another model") from None
    # safetensors keeps no memory format; convolutions are fastest in this one.
    return model.to(memory_format=torch.channels_last).eval(), card
