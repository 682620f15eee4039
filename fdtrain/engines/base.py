"""The interface between the training loop and whatever runs its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fdtrain.data.batch import Batch
from fdtrain.task import ClassificationTask


@dataclass(frozen=True)
class StepResult:
    """What came of one optimizer step on this rank.

    Args:
        scalars: Means over this rank's micro-batches, still on the device: reading one waits for the device.
        grad_norm: L2 norm of the gradient before clipping, on the device.
        lr: Learning rate of the step.
    """

    scalars: dict[str, Tensor]
    grad_norm: Tensor
    lr: float


@dataclass(frozen=True)
class EngineState:
    """What a checkpoint holds of an engine.

    Args:
        model: The model's `state_dict` for evaluation: parameters, and buffers averaged over the ranks.
        training: Optimizer, schedule and scaler: tensors and JSON-like values, the same on every rank.
        local: What differs between ranks: this rank's own buffers.
    """

    model: dict[str, Tensor]
    training: dict[str, Any]
    local: dict[str, Any]


class Engine(Protocol):
    """Runs optimizer steps on a task. All methods are collective: every rank calls them together."""

    def train_step(self, batches: Sequence[Batch], draw_seeds: Sequence[int]) -> StepResult:
        """Forward and backward of each micro-batch under its own seed of random draws, then one optimizer step."""

    def evaluation_task(self) -> ClassificationTask:
        """A copy of the task with the weights of `EngineState.model`, in evaluation mode. Changes nothing."""

    def state(self) -> EngineState:
        """The state to save. Changes nothing."""

    def load_state(self, state: EngineState) -> None:
        """Go on from a saved state. One saved by another number of ranks has an empty `local`."""
