"""EfficientNets that timm, or a script over it, trained as detectors: two classes, class 1 = fake."""

from pathlib import Path

from fdtrain.config import UserError
from fdtrain.models.efficientnet import efficientnet_spec, is_efficientnet
from fdtrain.models.imports.base import Imported
from fdtrain.models.state import read_state


def read_timm(path: Path, name: str | None = None) -> Imported:
    """Read a state dict under timm's names.

    Args:
        path: `.safetensors`, or `.pth` with the state dict or with it under "state_dict".
        name: The network: networks that differ in padding, or in how their input is normalized, have the same tensors.

    Raises:
        UserError: the file isn't readable, no network was named, or the classifier hasn't two classes.
    """
    if name is None:
        raise UserError(
            f"model: {path} can't say which network it holds, or how its input was normalized; name it with --model, "
            "such as tf_efficientnet_b4.ns_jft_in1k, or efficientnet_b4 for mean and std 0.5"
        )
    if not is_efficientnet(name):
        raise UserError(f"model: {name} is no EfficientNet; --from timm takes those")
    spec = efficientnet_spec(name)
    state = read_state(path)
    classes = state["classifier.weight"].shape[0] if "classifier.weight" in state else 0
    if classes != 2:
        raise UserError(
            f"{path}: {classes or 'no'} classes, where a detector has 2; to train one from these weights give the file "
            "itself as model.pretrained"
        )
    return Imported(name, {"image_size": spec.size}, spec, state)
