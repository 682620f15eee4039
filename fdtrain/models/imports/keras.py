"""MesoNet's weights as its authors released them: HDF5 files of Keras, in which one output is P(real).

The layout is Keras' legacy one: a group for every layer, in the order of the attribute `layer_names`; at the root of a
file of weights, under `model_weights` in a file of a whole model. Keras matches layers by that order, not by name.
"""

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from datasets_shards.errors import first_few
from fdtrain.config import UserError
from fdtrain.models.imports.base import Imported, check_name
from fdtrain.models.mesonet import PUBLISHED_SPEC

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_AFFINE = {"kernel": "weight", "bias": "bias"}

_MESO4 = [
    *(f"features.{index}" for block in range(4) for index in (4 * block, 4 * block + 2)),
    "classifier.2",
    "classifier.5",
]
# Keras sorts the layers by their distance from the output: of an inception block first come the 1x1 convolutions of the
# three long branches, then the short branch beside their 3x3 ones.
_BRANCHES = ["1.0", "2.0", "3.0", "0.0", "1.2", "2.2", "3.2"]
_MESO_INCEPTION4 = [
    *(f"features.0.branches.{layer}" for layer in _BRANCHES),
    "features.1",
    *(f"features.3.branches.{layer}" for layer in _BRANCHES),
    "features.4",
    *("features.6", "features.8", "features.10", "features.12"),
    "classifier.2",
    "classifier.5",
]
_LAYERS = {"meso4": _MESO4, "meso_inception4": _MESO_INCEPTION4}
"""Our names of the layers that have weights, in Keras' order."""


def read_mesonet(path: Path, name: str | None = None) -> Imported:
    """Read an `.h5` of Meso4 or MesoInception4; the number of layers says which of the two it is.

    Raises:
        UserError: it isn't readable as HDF5, or neither of the two.
    """
    layers = _read_layers(path)
    found = next((model for model, places in _LAYERS.items() if len(places) == len(layers)), None)
    if found is None:
        raise UserError(
            f"{path}: {len(layers)} layers with weights ({first_few(layers)}), where Meso4 has {len(_MESO4)} and "
            f"MesoInception4 {len(_MESO_INCEPTION4)}; take a file of one of these"
        )
    check_name(found, name, path)
    state: dict[str, Tensor] = {}
    for (layer, weights), place in zip(layers.items(), _LAYERS[found], strict=True):
        names = _NORM if "gamma" in weights else _AFFINE
        if weights.keys() != names.keys():
            raise UserError(f"{path}: layer {layer} has {sorted(weights)}, where {sorted(names)} belong")
        for theirs, ours in names.items():
            state[f"{place}.{ours}"] = _in_torch_order(torch.from_numpy(weights[theirs]))
    return Imported(found, {"image_size": 256}, PUBLISHED_SPEC, state | _dense_in_torch_order(state, path))


def _in_torch_order(weight: Tensor) -> Tensor:
    """[H, W, in, out] -> [out, in, H, W]; [in, out] -> [out, in]."""
    return weight.permute(3, 2, 0, 1) if weight.ndim == 4 else weight.T if weight.ndim == 2 else weight


def _dense_in_torch_order(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Keras flattens [8, 8, 16], torch [16, 8, 8]."""
    weight = state["classifier.2.weight"]
    if weight.shape != (16, 8 * 8 * 16):
        raise UserError(f"{path}: a first dense layer of {list(weight.shape[::-1])}, where a MesoNet has [1024, 16]")
    return {"classifier.2.weight": weight.reshape(16, 8, 8, 16).permute(0, 3, 1, 2).reshape(16, -1)}


def _read_layers(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Layer -> last part of a weight's name -> the weight, float32; layers without weights are left out."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            if "layer_names" not in root.attrs:
                raise UserError(f"{path}: HDF5, but not of Keras' weights; take one of MesoNet's released .h5 files")
            layers = {}
            for layer in map(_text, root.attrs["layer_names"]):
                weights = {
                    name.rsplit("/", 1)[-1].partition(":")[0]: np.asarray(root[layer][name], dtype=np.float32)
                    for name in map(_text, root[layer].attrs["weight_names"])
                }
                if weights:
                    layers[layer] = weights
            return layers
    except (OSError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable as Keras' HDF5, or damaged ({error}); fetch it again") from None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
