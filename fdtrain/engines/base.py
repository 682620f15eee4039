"""The interface between the training loop and whatever runs its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from fdtrain.data.batch import Batch
from fdtrain.tasks import Task

Outcome = Literal["applied", "nonfinite", "rescaled"]


@dataclass(frozen=True)
class StepResult:
    """What came of one optimizer step on this rank.

    Args:
        scalars: Means over this rank's micro-batches, still on the device: reading one waits for the device.
        grad_norm: L2 norm of the gradient before clipping, on the device.
        lr: Learning rate of the step.
        outcome: The same on every rank. "applied"; "nonfinite": a loss or the gradient was not finite, and nothing has
            changed; "rescaled": fp16's gradient overflowed while its scale is being found, and nothing but the scale
            has changed.
    """

    scalars: dict[str, Tensor]
    grad_norm: Tensor
    lr: float
    outcome: Outcome = "applied"


@dataclass(frozen=True)
class EngineState:
    """What a checkpoint holds of an engine.

    Args:
        model: The model's `state_dict`, the same on every rank.
        training: Optimizer, schedule and scaler: tensors and JSON-like values, the same on every rank.
        local: What differs between ranks: a rank's share of the optimizer's state, where an engine shares that out.
        ema: The moving averages of `model`, where they are kept.
    """

    model: dict[str, Tensor]
    training: dict[str, Any]
    local: dict[str, Any]
    ema: dict[str, Tensor] | None = None


class Engine(Protocol):
    """Runs optimizer steps on a task. All methods are collective: every rank calls them together."""

    settings: dict[str, Any]
    """What it was set up with, in its own words and with every default; empty where our configuration says it all."""

    def start_epoch(self, epoch: int) -> None:
        """Make ready for steps of an epoch (from 0): before its first, and after `load_state` within one."""

    def train_step(self, batches: Sequence[Batch], draw_seeds: Sequence[int]) -> StepResult:
        """Forward and backward of each micro-batch under its own seed of random draws, then one optimizer step."""

    def take_seconds(self) -> dict[str, float]:
        """Seconds of this rank's device since the last call: "forward_backward", "communication" and "optimizer".

        "communication" is what the ranks' exchange added to the step: none of it is in the other two. An engine that
        knows how much of it the backward pass hid says so as "communication_hidden". Waits for the device.
        """

    def evaluation_task(self) -> Task:
        """A copy of the task in evaluation mode, equal on all ranks. Changes nothing.

        It has the moving averages of the weights, where they are kept.
        """

    def state(self) -> EngineState:
        """The state to save. Changes nothing."""

    def load_state(self, state: EngineState) -> None:
        """Go on from a saved state. One saved by another number of ranks has an empty `local`."""
