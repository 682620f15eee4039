"""What a model folder says of its model: `model.json`, and which file holds the weights."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdtrain.config import UserError

WEIGHTS_NAME = "model.safetensors"
EMA_NAME = "ema.safetensors"
"""Moving averages of the weights, beside them in a checkpoint; they are what the run evaluates."""
MODEL_NAME = "model.json"
CARD_KEY = "fdtrain"
"""Where the metadata of a model logged to MLflow holds the content of its `model.json`."""

SIZES = (16, 4096)
"""Least and largest side of an image, pixels."""
CROP_LIMITS = {
    "size": (1, 8192),
    "unscaled_size": SIZES,
    "upsample": (0, 3),
    "reduce": (1, 8),
    "min_face": (1, 10_000),
}
"""Of the whole numbers in a manifest's crop, as the flags of pack have them."""

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


def read_model_card(folder: Path) -> dict[str, Any]:
    """`model.json` of a model folder, its "input" as an `InputSpec`. Raises UserError where it can't be read."""
    path = folder / MODEL_NAME
    try:
        return parse_card(json.loads(path.read_bytes()), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so {folder} is neither a run, a checkpoint nor a model") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); take another checkpoint") from None


def parse_card(content: Any, place: str) -> dict[str, Any]:
    """The content of a `model.json`, its "input" as an `InputSpec`. Raises UserError where it can't be used."""
    if not isinstance(content, dict):
        raise UserError(f"{place}: no JSON object, so it says nothing of a model; take another model")
    for key, kind in (("name", str), ("options", dict)):
        if not isinstance(content.get(key), kind):
            raise UserError(f"{place}: {key!r} is missing or no {kind.__name__}; take another model")
    try:
        spec = content["input"]
        given = InputSpec(spec["size"], tuple(spec["mean"]), tuple(spec["std"]), spec["interpolation"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{place}: says nothing usable of the model's input ({error!r}); take another model") from None
    _check_input(given, place)
    if (side := content["options"].get("image_size")) is not None:
        _check(place, "options.image_size", side, _is_count(side, *SIZES), _between(*SIZES))
    trained_on = content.get("trained_on") or {}
    _check(place, "trained_on", trained_on, isinstance(trained_on, dict), "an object")
    if (crop := trained_on.get("crop")) is not None:
        _check_crop(crop, place)
    return content | {"input": given}


def _check_input(spec: InputSpec, place: str) -> None:
    """Raise UserError for an input that no model has."""
    _check(place, "input.size", spec.size, _is_count(spec.size, *SIZES), _between(*SIZES))
    for key, low in (("mean", -math.inf), ("std", 0.0)):
        values = getattr(spec, key)
        is_right = len(values) == 3 and all(_is_number(value) and low < value < math.inf for value in values)
        _check(place, f"input.{key}", list(values), is_right, "three numbers" + (" above 0" if key == "std" else ""))
    known = ("bicubic", "bilinear")
    _check(place, "input.interpolation", spec.interpolation, spec.interpolation in known, " or ".join(known))


def _check_crop(crop: Any, place: str) -> None:
    """Raise UserError for crops that the packer doesn't make; what isn't recorded is passed over."""
    _check(place, "trained_on.crop", crop, isinstance(crop, dict), "an object, as manifests have it")
    for key, limits in CROP_LIMITS.items():
        if (value := crop.get(key)) is not None:
            _check(place, f"trained_on.crop.{key}", value, _is_count(value, *limits), _between(*limits))
    if (margin := crop.get("margin")) is not None:
        _check(place, "trained_on.crop.margin", margin, _is_number(margin) and 1 <= margin <= 4, "1 to 4")
    if (scale := crop.get("dct_scale")) is not None:
        is_right = isinstance(scale, str) and scale in {f"8/{each}" for each in range(1, 17)}
        _check(place, "trained_on.crop.dct_scale", scale, is_right, "8/1 to 8/16")


def _check(place: str, key: str, value: Any, is_right: bool, allowed: str) -> None:
    if not is_right:
        raise UserError(f"{place}: {key} is {json.dumps(value)[:200]}, allowed is {allowed}; take another model")


def _between(low: int, high: int) -> str:
    return f"a whole number from {low} to {high}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def model_folder(place: Path) -> Path:
    """The folder with the weights: `place` itself, or the best model of the run folder `place`."""
    if not place.is_dir():
        what = "is a file" if place.exists() else "no such folder"
        raise UserError(f"{place}: {what}; --model takes a run folder, a checkpoint or a models:/ URI")
    best = place / "best"
    if (place / "status.json").exists() and not best.is_dir():
        raise UserError(
            f"{place}: the run has no best model, which comes with the first validation; go on with it by "
            "--run.resume auto, or name one of its checkpoints"
        )
    return best if best.is_dir() and not (place / MODEL_NAME).exists() else place


def weights_file(folder: Path) -> Path:
    """The weights of a model folder that are to be used: the averaged ones where there are any."""
    ema = folder / EMA_NAME
    return ema if ema.exists() else folder / WEIGHTS_NAME
