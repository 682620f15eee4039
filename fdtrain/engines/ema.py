"""An exponential moving average of a model's weights (Tarvainen and Valpola, NeurIPS 2017)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fdtrain.engines.buffers import copy_all


class MovingAverage:
    """Averages of all floating-point values of a model's state, those of batch normalization too; counters are copied.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the average of a young run isn't its initial weights.

    Args:
        model: Whose first values the averages take.
        decay: In (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after its optimizer step number `step`, from 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        pairs = [(self.values[name], value) for name, value in model.state_dict().items()]
        averages, currents = zip(*(pair for pair in pairs if pair[1].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, currents, weight)
        copy_all(pair for pair in pairs if not pair[1].is_floating_point())

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from saved averages."""
        for name, average in self.values.items():
            average.copy_(values[name])
