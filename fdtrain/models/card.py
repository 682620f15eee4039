"""What a model folder says of its model: `model.json`, and which file holds the weights."""

import json
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
    return content | {"input": given}


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
