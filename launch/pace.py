"""What is told of how long trainings take, by studies and sweeps alike."""

FORWARD_SHARE = 1 / 3
"""Of an image's time in training: the forward pass alone, where the backward pass is twice as much work."""


def scoring_seconds(samples: float, images_per_s: float) -> float:
    """How long a model takes to score samples, by the rate of its training."""
    return samples * FORWARD_SHARE / images_per_s
