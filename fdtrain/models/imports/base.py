"""What every reader gives, and what two of them share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fdtrain.config import UserError
from fdtrain.models.card import InputSpec


@dataclass(frozen=True)
class Imported:
    """A checkpoint in our terms.

    Args:
        name: Of the model, for `create_model`.
        options: For `create_model`.
        spec: The input that it was trained on.
        state: The weights, under our names.
        facts: What else the file said, JSON values.
    """

    name: str
    options: dict[str, Any]
    spec: InputSpec
    state: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


def check_name(found: str, given: str | None, path: Path) -> None:
    """Raise UserError where the user named another model than the file holds."""
    if given is not None and given != found:
        raise UserError(f"model: {path} holds {found}, not {given}; leave --model out")


NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""The tensors of a batch normalization."""


def tensors(theirs: str, ours: str, parts: tuple[str, ...]) -> dict[str, str]:
    """Their names -> our names of the tensors of one module."""
    return {f"{theirs}.{part}": f"{ours}.{part}" for part in parts}


_B4_BLOCKS = (2, 4, 4, 6, 6, 8, 2)
"""Blocks of each stage of EfficientNet-B4 (Tan and Le: B0's, table 1, times 1.8)."""


def b4_names(theirs: str, ours: str, classifier: str) -> dict[str, str]:
    """efficientnet_pytorch's names of a B4's tensors -> timm's.

    efficientnet_pytorch counts the blocks through, timm by stage; the first stage's blocks expand nothing.

    Args:
        theirs: Prefix of their names, such as "net.".
        ours: Prefix of timm's.
        classifier: Their name of the classifier.
    """
    weight, both = ("weight",), ("weight", "bias")
    names = tensors(f"{theirs}_conv_stem", f"{ours}conv_stem", weight)
    names |= tensors(f"{theirs}_bn0", f"{ours}bn1", NORM_PARTS)
    places = [(stage, block) for stage, count in enumerate(_B4_BLOCKS) for block in range(count)]
    for index, (stage, block) in enumerate(places):
        a, b = f"{theirs}_blocks.{index}.", f"{ours}blocks.{stage}.{block}."
        convolutions = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
        norms = {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
        if stage == 0:
            convolutions["_project_conv"] = "conv_pw"
            norms = {"_bn1": "bn1", "_bn2": "bn2"}
        else:
            convolutions["_expand_conv"] = "conv_pw"
        for source, target in convolutions.items():
            names |= tensors(a + source, b + target, weight)
        for source, target in norms.items():
            names |= tensors(a + source, b + target, NORM_PARTS)
        names |= tensors(f"{a}_se_reduce", f"{b}se.conv_reduce", both)
        names |= tensors(f"{a}_se_expand", f"{b}se.conv_expand", both)
    names |= tensors(f"{theirs}_conv_head", f"{ours}conv_head", weight)
    names |= tensors(f"{theirs}_bn1", f"{ours}bn2", NORM_PARTS)
    return names | tensors(classifier, f"{ours}classifier", both)
