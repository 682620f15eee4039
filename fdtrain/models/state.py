"""Weights out of a file, without running any code from it, and into a network, without guessing.

Of the formats that hold weights, safetensors and HDF5 are plain data. A `.pth` file is a pickle: it is read by torch's
restricted unpickler, which builds tensors and plain values and nothing else.
"""

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from datasets_shards.errors import first_few
from fdtrain.config import UserError
from fdtrain.models.card import InputSpec, model_folder, read_model_card, weights_file

COUNTER = "num_batches_tracked"
"""Counter of a batch normalization. Files older than it lack it, and with a momentum set nothing reads it."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file or a torch file (the dict itself, or under "state_dict").

    A `module.` before every name, DataParallel's, is taken off.

    Raises:
        UserError: there is no such file, it is damaged, needs code to be unpickled, or holds no state dict.
    """
    content = _read(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds no state dict; take a file that torch.save(model.state_dict(), ...) wrote")
    if others := [str(key) for key, value in content.items() if not (isinstance(key, str) and torch.is_tensor(value))]:
        raise UserError(f"{path}: holds no state dict: no tensors are {first_few(others)}; save the state dict alone")
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return content


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not readable as safetensors ({error}); fetch it again") from None
    with path.open("rb") as file:
        start = file.read(2)
    # A zip archive, torch's form since 1.6, or a bare pickle before it.
    if start != b"PK" and start[:1] != b"\x80":
        raise UserError(f"{path}: neither a safetensors nor a torch file, or damaged; fetch it again")
    if kind := _program_kind(path):
        raise UserError(
            f"{path}: refused, since it holds a program ({kind}), not weights alone; where you trust it, load it "
            "elsewhere and save its state dict alone, as safetensors"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # of a pickle by other hands; refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own advice is how to unpickle it nevertheless, which is code execution; of it only the cause is shown.
        lines = [line.strip() for line in str(error).splitlines()]
        cause = next((line.split(". ")[0] for line in lines if "global" in line.lower()), "it is a foreign pickle")
        cause = cause.removeprefix("WeightsUnpickler error: ")
        raise UserError(
            f"{path}: refused, since unpickling it can run code ({cause}); where you trust it, load it elsewhere and "
            "save its state dict alone, as safetensors"
        ) from None
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()) or "it ends too early"
        raise UserError(f"{path}: damaged ({reason}); fetch it again") from None


def _program_kind(path: Path) -> str | None:
    """Which kind of program a file is; None for weights, and for what is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}  # each in a folder of any name
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return None  # a bare pickle, or damaged; torch says what is wrong with it
    return "TorchScript" if "constants.pkl" in names else "torch.export" if "archive_format" in names else None


def fit(model: nn.Module, state: Mapping[str, Tensor], where: object, classifier: str = "") -> list[str]:
    """Load a state dict, each of its tensors and into each of the network's.

    Args:
        model: The network, changed in place.
        state: Its state dict; counters of batch normalization may be missing.
        where: Names the source in an error, such as the file.
        classifier: How the names of the last layer begin, where that may have another number of classes in `state`:
            the network then keeps its own. With "" it may not.

    Returns:
        The names of the classifier's tensors that were left out.

    Raises:
        UserError: names are left over or missing, or shapes differ; all of them are counted, the first few named.
    """
    own = model.state_dict()
    misshapen = [key for key in own if key in state and state[key].shape != own[key].shape]
    left_out = [
        key
        for key in misshapen
        if classifier and key.startswith(classifier) and state[key].shape[1:] == own[key].shape[1:]
    ]
    faults = {
        "left over": [key for key in state if key not in own],
        "missing": [key for key in own if key not in state and not key.endswith(COUNTER)],
        "of another shape": [
            f"{key} {_size(state[key])} for {_size(own[key])}" for key in misshapen if key not in left_out
        ],
    }
    if any(faults.values()):
        raise UserError(f"{where}: doesn't fit the network: {_count(faults)}")
    model.load_state_dict(own | {key: value for key, value in state.items() if key not in left_out})
    return left_out


def rename(state: Mapping[str, Tensor], names: Mapping[str, str], where: object) -> dict[str, Tensor]:
    """A state dict under our names.

    Args:
        state: Under the source's names.
        names: The source's name -> ours, for every tensor that the network has; counters may be missing in `state`.
        where: Names the source in an error.

    Raises:
        UserError: names are left over or missing, of which the first few are named.
    """
    faults = {
        "left over": [key for key in state if key not in names],
        "missing": [key for key in names if key not in state and not key.endswith(COUNTER)],
    }
    if any(faults.values()):
        raise UserError(f"{where}: not the network that it seems to be: {_count(faults)}")
    return {ours: state[theirs] for theirs, ours in names.items() if theirs in state}


def start_from(
    model: nn.Module,
    place: str,
    spec: InputSpec,
    *,
    differs: Callable[[dict[str, Any]], str],
    classifier: str = "",
) -> None:
    """Begin with the weights at `model.pretrained`; a classifier of another number of classes keeps its own, noted.

    Args:
        model: The network, changed in place.
        place: A run (its best model), a checkpoint, a model folder, or a file of weights under the network's names.
        spec: What the new model is to be fed.
        differs: Given a folder's `model.json`: what is wrong with it and what to do, "" where it is the same network.
        classifier: As of `fit`.

    Raises:
        UserError: there is nothing, it isn't readable, or it is another network's.
    """
    path = Path(place)
    if not path.exists():
        raise UserError(f"model.pretrained: {place}: no such file or folder; allowed are also true and false")
    if path.is_dir():
        folder = model_folder(path)
        card = read_model_card(folder)
        if fault := differs(card):
            raise UserError(f"model.pretrained: {place}: {fault}, or take another folder")
        theirs = card["input"]
        if (theirs.mean, theirs.std) != (spec.mean, spec.std):
            _say(f"{place} was trained with mean {theirs.mean} and std {theirs.std}; here {spec.mean} and {spec.std}")
        path = weights_file(folder)
    if left_out := fit(model, read_state(path), f"model.pretrained: {path}", classifier):
        _say(f"{path}: has another number of classes; {first_few(left_out)} start anew")


def another_network(card: dict[str, Any], is_same: Callable[[str], bool], variant: str | None) -> str:
    """`differs` of `start_from`, for networks that their name and variant tell.

    Args:
        card: The folder's `model.json`.
        is_same: Whether a model of that name in our registry is the same network.
        variant: Of the network.
    """
    held = card["options"].get("variant")
    if is_same(card["name"]) and held == variant:
        return ""
    form = f", variant {held}" if held else ""
    return f"holds {card['name']}{form}, another network; set model.name and model.variant to match"


def _count(faults: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{len(keys)} {fault}: {first_few(keys)}" for fault, keys in faults.items() if keys)


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _say(note: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"model.pretrained: {note}", flush=True)
