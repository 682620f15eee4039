"""Real or fake by one loss of the logits."""

from collections.abc import Sequence

from torch import Tensor, nn

from fdtrain.config import LossConfig
from fdtrain.models import InputSpec
from fdtrain.tasks.base import Task
from fdtrain.tasks.losses import create_loss


class ClassificationTask(Task):
    """The task of every model that is nothing but its logits.

    Args:
        model: Normalized float `[B, 3, S, S]` -> logits `[B, 2]`.
        spec: The model's input.
        loss: What a wrong answer costs; cross entropy if None.
        freeze: As of `Task`.
    """

    def __init__(
        self, model: nn.Module, spec: InputSpec, loss: LossConfig | None = None, freeze: Sequence[str] = ()
    ) -> None:
        super().__init__(model, spec, freeze)
        self.loss = create_loss(loss or LossConfig())

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Task`."""
        logits = self.model(self.prepare(images))
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        return {"loss": self.loss(logits, labels), "acc": accuracy}
