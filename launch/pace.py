"""What is told of how long trainings take, by studies and sweeps alike."""

from operator import attrgetter
from typing import Any

from fdtrain.config import Config

WITHOUT = {
    "tracking.tags": None,
    "train.max_minutes": None,
    "profile.steps": None,
    "profile.ranks": None,
    "multi_attention.backbone_epochs": 0,
    "multi_attention.head_epochs": 0,
}
"""Settings of a training that some steps of it can't do, or that say nothing of the time that it takes."""

FORWARD_SHARE = 1 / 3
"""Of an image's time in training: the forward pass alone, where the backward pass is twice as much work."""


def settings_to_try(config: Config, steps: int) -> dict[str, Any]:
    """Over a training's own settings, what makes it end after some steps, without records of it."""
    settings = {"train.max_steps": steps, "train.log_every": 1, "tracking.enabled": False}
    return settings | {key: value for key, value in WITHOUT.items() if attrgetter(key)(config)}


def scoring_seconds(samples: float, images_per_s: float) -> float:
    """How long a model takes to score samples, by the rate of its training."""
    return samples * FORWARD_SHARE / images_per_s
