"""From a model's name to the model, to the input it expects, and to the layer that Grad-CAM looks at."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from datasets_shards.errors import nearest
from fdtrain.config import UserError
from fdtrain.models.card import InputSpec
from fdtrain.models.efficientnet import EFFICIENTNETS, efficientnet, efficientnet_spec, is_efficientnet
from fdtrain.models.mesonet import mesonet, mesonet_spec

_MULTI_ATTENTION_KEYS = ("backbone", "maps", "texture_stage", "map_drop_rate")
"""Options that the configuration has in its section `multi_attention`."""


@dataclass(frozen=True)
class _Entry:
    """A model.

    Args:
        factory: Takes the options that its signature has.
        spec: The variant and the backbone -> the input.
        cam_layer: Path of the module whose output is the last convolutional feature maps.
    """

    factory: Callable[..., nn.Module]
    spec: Callable[[str | None, str | None], InputSpec]
    cam_layer: str


def _multi_attention(
    pretrained: bool | str | None = None,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    image_size: int | None = None,
    backbone: str | None = None,
    maps: int | None = None,
    texture_stage: str | None = None,
    map_drop_rate: float | None = None,
) -> nn.Module:
    options = dict(locals())
    from fdtrain.models.multi_attention import MultiAttentionNetwork

    return MultiAttentionNetwork(**_given(options))


def _multi_attention_spec(variant: str | None, backbone: str | None) -> InputSpec:
    try:
        return efficientnet_spec(backbone or "efficientnet_b4")
    except UserError as error:
        raise UserError(str(error).replace("model.name:", "multi_attention.backbone:", 1)) from error


def _efficientnet_entry(name: str) -> _Entry:
    def spec(variant: str | None, backbone: str | None) -> InputSpec:
        return InputSpec(256) if variant else efficientnet_spec(name)

    return _Entry(partial(efficientnet, name), spec, "bn2")


def _mesonet_entry(name: str) -> _Entry:
    return _Entry(partial(mesonet, name), lambda variant, backbone: mesonet_spec(variant), "features.-2")


_REGISTRY: dict[str, _Entry] = {
    "meso4": _mesonet_entry("meso4"),
    "meso_inception4": _mesonet_entry("meso_inception4"),
    "multi_attention": _Entry(_multi_attention, _multi_attention_spec, "backbone.bn2"),
    **{name: _efficientnet_entry(name) for name in EFFICIENTNETS},
}


def model_names() -> list[str]:
    """The names of the models; `create_model` also knows every EfficientNet of timm by timm's name."""
    return list(_REGISTRY)


def create_model(name: str, **options: Any) -> nn.Module:
    """Make a model: normalized float `[B, 3, H, W]` -> logits `[B, 2]`, class 1 = fake.

    Args:
        name: One of `model_names()`, or an EfficientNet's name in timm.
        options: `pretrained`, `drop_rate`, `drop_path_rate`, `image_size`, `outputs`, `variant`, and those of
            `multi_attention`; None or False leaves the model's default.

    Raises:
        UserError: the name is unknown, or the model has no such option.
    """
    factory = _entry(name).factory
    given = _given(options)
    if given.get("drop_path_rate") == 0:
        del given["drop_path_rate"]  # none, which is what every model has
    if unknown := given.keys() - inspect.signature(factory).parameters:
        key = min(unknown)
        section = "multi_attention" if key in _MULTI_ATTENTION_KEYS else "model"
        raise UserError(f"{section}.{key}: {name} has no such option; leave it out")
    return factory(**given)


def input_spec(name: str, variant: str | None = None, backbone: str | None = None) -> InputSpec:
    """The input that a model was designed for.

    Args:
        name: As of `create_model`.
        variant: `model.variant`.
        backbone: `multi_attention.backbone`, whose input is that network's; the others have none.

    Raises:
        UserError: the name, or the backbone's, is unknown.
    """
    return _entry(name).spec(variant, backbone)


def cam_layer(name: str, model: nn.Module) -> nn.Module:
    """The part of the model whose output is its last convolutional features `[B, C, h, w]`, for Grad-CAM.

    Args:
        name: The model's name.
        model: What `create_model` made of it.

    Raises:
        UserError: the name is unknown.
    """
    module = model
    for part in _entry(name).cam_layer.split("."):
        module = list(module.children())[int(part)] if part.startswith("-") else module.get_submodule(part)
    return module


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None and value is not False}


def _entry(name: str) -> _Entry:
    if name in _REGISTRY:
        return _REGISTRY[name]
    if is_efficientnet(name):  # timm knows whether there is one
        return _efficientnet_entry(name)
    match = nearest(name, _REGISTRY)
    hint = f"did you mean {match}?" if match else f"known are {', '.join(_REGISTRY)}"
    raise UserError(f"model.name: {name!r} is unknown; {hint}")
