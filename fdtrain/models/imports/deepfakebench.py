"""Checkpoints of DeepfakeBench (Yan et al., NeurIPS 2023): `efficientnetb4`, `meso4` and `meso4Inception`.

A file is the detector's state dict, whose network is under `backbone.`. The benchmark feeds all of them RGB crops of
256x256, resized with bicubic interpolation and normalized with mean and std 0.5; class 1 is fake. How these crops are
cut out of frames isn't in a file: `fdtrain.predict` does it for this format by `--align deepfakebench`.
"""

from pathlib import Path

from fdtrain.config import UserError
from fdtrain.models.card import InputSpec
from fdtrain.models.imports.base import NORM_PARTS, Imported, b4_names, check_name, tensors
from fdtrain.models.state import read_state, rename

_WEIGHT, _BOTH = ("weight",), ("weight", "bias")


def read_deepfakebench(path: Path, name: str | None = None) -> Imported:
    """Read a checkpoint; which of the three networks it holds is seen from its names.

    Raises:
        UserError: it isn't readable, is none of the three, or not quite one of them.
    """
    state = read_state(path)
    if "backbone.efficientnet._conv_stem.weight" in state:
        found, names = "efficientnet_b4", b4_names("backbone.efficientnet.", "", "backbone.last_layer")
    elif "backbone.Incption1_conv1.weight" in state:
        found, names = "meso_inception4", _meso_inception4_names()
    elif "backbone.conv1.weight" in state and "backbone.fc1.weight" in state and "backbone.conv4.weight" in state:
        found, names = "meso4", _meso4_names()
    else:
        raise UserError(
            f"{path}: none of DeepfakeBench's efficientnetb4, meso4 and meso4Inception (its names begin with "
            f"{next(iter(state))}); take a file of one of these detectors"
        )
    check_name(found, name, path)
    options = {"variant": "deepfakebench", "image_size": 256}
    return Imported(found, options, InputSpec(256), rename(state, names, path))


def _meso4_names() -> dict[str, str]:
    names = _shared_norms({"conv1": 0, "conv2": 1, "conv3": 2, "conv4": 3}, {"bn1": "8", "bn2": "16"}, "features.0")
    return names | _dense()


def _meso_inception4_names() -> dict[str, str]:
    names = _shared_norms({"conv1": 0, "conv2": 1}, {"bn1": "16"}, "features.6")
    for number, place in ((1, 0), (2, 3)):  # their spelling
        theirs, ours = f"backbone.Incption{number}_", f"features.{place}.branches"
        names |= tensors(f"{theirs}conv1", f"{ours}.0.0", _WEIGHT)
        for branch in (1, 2, 3):
            for layer in (0, 1):
                names |= tensors(f"{theirs}conv{branch + 1}_{layer + 1}", f"{ours}.{branch}.{layer}", _WEIGHT)
        names |= tensors(f"{theirs}bn", f"features.{place + 1}", NORM_PARTS)
    return names | _dense()


def _shared_norms(convolutions: dict[str, int], norms: dict[str, str], place: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for theirs, index in convolutions.items():
        names |= tensors(f"backbone.{theirs}", f"{place}.convolutions.{index}", _WEIGHT)
    for theirs, ours in norms.items():
        names |= tensors(f"backbone.{theirs}", f"{place}.norms.{ours}", NORM_PARTS)
    return names


def _dense() -> dict[str, str]:
    # Both flatten [C, H, W] in this order.
    return tensors("backbone.fc1", "classifier.2", _BOTH) | tensors("backbone.fc2", "classifier.5", _BOTH)
