"""From a model's name to the model, and to the input it expects."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from fdtrain.config import UserError
from fdtrain.models.efficientnet import EFFICIENTNET_SIZES, efficientnet
from fdtrain.models.mesonet import Meso4

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class InputSpec:
    """What a model takes: saved with its weights, so that nobody has to remember it.

    Args:
        size: Side of the square input, pixels.
        mean: Subtracted from each RGB channel, on the scale 0..1.
        std: Divides each RGB channel after that.
        interpolation: How an image of another size is resized.
    """

    size: int
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., nn.Module]
    spec: InputSpec


_REGISTRY: dict[str, _Entry] = {
    # Published with pixels scaled to 0..1 and nothing else.
    "meso4": _Entry(Meso4, InputSpec(256, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear")),
    **{name: _Entry(partial(efficientnet, name), InputSpec(size)) for name, size in EFFICIENTNET_SIZES.items()},
}


def model_names() -> list[str]:
    """Every name that `create_model` knows."""
    return list(_REGISTRY)


def create_model(name: str, **options: Any) -> nn.Module:
    """Make a model: normalized float `[B, 3, H, W]` -> logits `[B, 2]`, class 1 = fake.

    Args:
        name: One of `model_names()`.
        options: `pretrained`, `drop_rate`, `drop_path_rate`, `image_size`; None or False leaves the model's default.

    Raises:
        UserError: the name is unknown, or the model has no such option.
    """
    factory = _entry(name).factory
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    if unknown := given.keys() - inspect.signature(factory).parameters:
        raise UserError(f"model.{min(unknown)}: {name} has no such option; leave it out")
    return factory(**given)


def input_spec(name: str) -> InputSpec:
    """The input that the model of this name was designed for. Raises UserError for an unknown name."""
    return _entry(name).spec


def _entry(name: str) -> _Entry:
    if name not in _REGISTRY:
        match = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f"did you mean {match[0]}?" if match else f"known are {', '.join(_REGISTRY)}"
        raise UserError(f"model.name: {name!r} is unknown; {hint}")
    return _REGISTRY[name]
