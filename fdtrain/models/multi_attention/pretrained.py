"""Beginning with a whole multi-attentional network, where `model.pretrained` names one, not just with its backbone."""

from pathlib import Path
from typing import Any

from torch import nn

from fdtrain.models.card import model_folder, read_model_card
from fdtrain.models.efficientnet import architecture, efficientnet_spec
from fdtrain.models.state import read_state, start_from

_NAME = "multi_attention"
_DEFAULTS = {"backbone": "efficientnet_b4", "maps": 4, "texture_stage": "b2"}
"""What an older `model.json` means by leaving an option out."""
_A_TENSOR = "attention.project.weight"


def is_whole(place: str) -> bool:
    """Whether a run, a checkpoint, a model folder or a file of weights holds a multi-attentional network.

    Raises:
        UserError: it isn't readable. What doesn't exist holds none.
    """
    path = Path(place)
    if path.is_dir():
        return bool(read_model_card(model_folder(path))["name"] == _NAME)
    return path.is_file() and _A_TENSOR in read_state(path)


def start_whole(model: nn.Module, place: str, own: dict[str, Any]) -> None:
    """Begin with the weights of a whole network.

    Args:
        model: A `MultiAttentionNetwork`, changed in place.
        place: As of `is_whole`, which it is.
        own: Its own backbone, maps and texture_stage, which the weights are to have too.

    Raises:
        UserError: the weights aren't readable, or another build's. A file's names and shapes are all that is known of
            its build, so it may have been padded otherwise.
    """

    def differs(card: dict[str, Any]) -> str:
        given = {key: value for key, value in card["options"].items() if key in _DEFAULTS and value is not None}
        for key, held in (_DEFAULTS | given).items():
            same = architecture(held) == architecture(own[key]) if key == "backbone" else held == own[key]
            if not same:
                return f"holds {_NAME} with {key} {held}, here {own[key]}; set {_NAME}.{key} to match"
        return ""

    start_from(model, place, efficientnet_spec(own["backbone"]), differs=differs)
