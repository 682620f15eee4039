"""Checkpoints of the multi-attentional network's authors (Zhao et al., CVPR 2021), on EfficientNet-B4.

A file has the network under "state_dict"; its backbone has efficientnet_pytorch's names, for 380x380 RGB crops
normalized with mean and std 0.5; class 1 is fake.
"""

from pathlib import Path

import torch

from fdtrain.config import UserError
from fdtrain.models.card import InputSpec
from fdtrain.models.imports.base import NORM_PARTS, Imported, b4_names, check_name, tensors
from fdtrain.models.state import read_state, rename

_BOTH = ("weight", "bias")
_STAGES = {24: "b1", 32: "b2", 56: "b3"}
"""Channels of B4's first stages -> which one the texture features come from."""


def read_multiple_attention(path: Path, name: str | None = None) -> Imported:
    """Read a checkpoint: the number of maps and the stage of the texture features are seen from its shapes.

    The border mask is a constant here and is checked; the margins of its loss are a setting here and become a fact.

    Raises:
        UserError: it isn't readable, or not this network on a B4.
    """
    state = read_state(path)
    if "attentions.conv2.weight" not in state or "texture_enhance.conv_extract.weight" not in state:
        raise UserError(f"{path}: no multi-attentional network (its names begin with {next(iter(state))})")
    check_name("multi_attention", name, path)
    mask = state.pop("attentions.mask", None)
    if mask is None or not torch.equal(mask.float(), _border_mask()):
        fault = "missing" if mask is None else "not ones with a border of two zeros, 24x24 in all"
        raise UserError(
            f"{path}: attentions.mask is {fault}, so its attention maps would differ from ours; take a checkpoint of "
            "the released network"
        )
    margins = state.pop("auxiliary_loss.inner_margin", None)
    maps = state["attentions.conv2.weight"].shape[0]
    channels = state["texture_enhance.conv_extract.weight"].shape[0]
    if channels not in _STAGES:
        raise UserError(f"{path}: texture features of {channels} channels, which no stage of EfficientNet-B4 has")
    return Imported(
        "multi_attention",
        {"backbone": "efficientnet_b4", "maps": maps, "texture_stage": _STAGES[channels], "image_size": 380},
        InputSpec(380),
        rename(state, _names(), path),
        {} if margins is None else {"margins": margins.tolist()},
    )


def _border_mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 2:-2, 2:-2] = 1
    return mask


def _names() -> dict[str, str]:
    names = b4_names("net.", "backbone.", "net._fc")
    names |= tensors("attentions.conv_extract", "attention.extract", _BOTH)
    names |= tensors("attentions.bn1", "attention.norm1", NORM_PARTS)
    names |= tensors("attentions.conv2", "attention.project", ("weight",))
    names |= tensors("attentions.bn2", "attention.norm2", NORM_PARTS)
    names |= tensors("texture_enhance.conv_extract", "texture.extract", _BOTH)
    for layer in ("conv0", "conv1", "conv2", "conv3", "conv_last"):
        names |= tensors(f"texture_enhance.{layer}", f"texture.{layer}", _BOTH)
    for layer in ("1", "2", "3", "4", "_last"):
        names |= tensors(f"texture_enhance.bn{layer}", f"texture.norm{layer}", NORM_PARTS)
    for layer in ("0", "2"):
        names |= tensors(f"projection_local.{layer}", f"local_projection.{layer}", _BOTH)
        names |= tensors(f"ensemble_classifier_fc.{layer}", f"classifier.{layer}", _BOTH)
    names |= tensors("project_final", "global_projection", _BOTH)
    return names | {"auxiliary_loss.feature_centers": "centers.centers", "auxiliary_loss.alpha": "centers.rate"}
