"""A task wraps a model and says what a training step and an evaluation step are.

An engine wraps the task and calls it; the training loop knows neither models nor engines by name.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fdtrain.data.batch import Batch
from fdtrain.models import InputSpec


class ClassificationTask(nn.Module):
    """Real or fake by cross entropy.

    Args:
        model: Normalized float `[B, 3, S, S]` -> logits `[B, 2]`.
        spec: The model's input; images of another size are resized to it on the device.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        # On the scale 0..255 of the decoded pixels. Not state: model.json holds them.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`training_step`, under the name by which DistributedDataParallel calls it."""
        return self.training_step(images, labels)

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One micro-batch: uint8 `[B, 3, H, W]` and int64 `[B]` -> "loss" and other scalars to log."""
        logits = self.model(self.prepare(images))
        # In fp32 under autocast as well.
        loss = functional.cross_entropy(logits.float(), labels)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        return {"loss": loss, "acc": accuracy}

    def scores(self, batch: Batch) -> Tensor:
        """P(fake), float32 `[B]`, of one batch in evaluation mode."""
        return self.model(self.prepare(batch.images)).float().softmax(1)[:, 1]

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 `[B, 3, H, W]` -> normalized float32 `[B, 3, S, S]`, channels_last, on the same device."""
        pixels = images.float()
        if images.shape[-2:] != (self.spec.size, self.spec.size):
            pixels = functional.interpolate(
                pixels, size=(self.spec.size, self.spec.size), mode=self.spec.interpolation, antialias=True
            ).clamp(0, 255)
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
