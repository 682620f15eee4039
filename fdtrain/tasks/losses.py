"""What a wrong answer costs: losses of the two logits, all in fp32, under autocast too.

Class weights make a weighted mean, as torch's cross entropy takes it: the sum over the micro-batch is divided by the
sum of the weights of its own labels. So a micro-batch without fakes weighs as much as any other. The number of ranks
changes nothing, since micro-batches are cut before they are shared out; `train.micro_batch_size` does.
"""

from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from fdtrain.config import LossConfig


def create_loss(config: LossConfig) -> "Loss":
    """The loss of these settings: logits `[B, 2]` of any float type, labels int64 `[B]` -> scalar float32, the mean."""
    return Loss(config)


class Loss(nn.Module):
    """See `create_loss`. It has no state; the class weights go along to the device.

    With the labels smoothed, t[c] = (1 - s) [c = label] + s / 2, class weights w and w[label] summed over the batch:

    - `cross_entropy`: sum of w[c] t[c] (-log p[c]) over classes and batch, divided by that sum.
    - `focal`: sum of w[c] t[c] (1 - p[c])^gamma (-log p[c]), divided likewise: Lin et al. 2017, equation 5, with w for
      its alpha. Smoothing spreads the label before the easy is made little of: both classes have their term, each with
      its own factor. With gamma 0 it is cross entropy.
    - `bce`: z = logits[1] - logits[0]; sum of w[label] (-t[1] log sigmoid(z) - t[0] log sigmoid(-z)), divided likewise.
      Since the sigmoid of z is the softmax of two classes, this is cross entropy but for one thing: the weight of an
      image is that of its label, also for the share that smoothing gives to the other class.
    """

    class_weights: Tensor | None

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        weights = None if config.class_weights is None else torch.tensor(config.class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits `[B, 2]` and labels int64 `[B]` -> scalar float32."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            match self.config.name:
                case "cross_entropy":
                    smoothing = self.config.label_smoothing
                    return functional.cross_entropy(logits, labels, self.class_weights, label_smoothing=smoothing)
                case "focal":
                    return self._focal(logits, labels)
                case "bce":
                    return self._bce(logits, labels)
            assert_never(self.config.name)

    def _focal(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        # 1 - p of one class is p of the other: exact near 0, where 1 - p is not, and so with a finite gradient.
        factor = (self.config.focal_gamma * log_p.flip(1)).exp()
        fake = self._targets(labels)
        costs = -torch.stack((1 - fake, fake), 1) * factor * log_p
        if self.class_weights is None:
            return costs.sum() / len(labels)
        return (costs * self.class_weights).sum() / self.class_weights[labels].sum()

    def _bce(self, logits: Tensor, labels: Tensor) -> Tensor:
        score, targets = logits[:, 1] - logits[:, 0], self._targets(labels)
        if self.class_weights is None:
            return functional.binary_cross_entropy_with_logits(score, targets)
        weights = self.class_weights[labels]
        total = functional.binary_cross_entropy_with_logits(score, targets, weights, reduction="sum")
        return total / weights.sum()

    def _targets(self, labels: Tensor) -> Tensor:
        """Smoothed share of the class fake, float32 `[B]`."""
        smoothing = self.config.label_smoothing
        return labels.float() * (1 - smoothing) + smoothing / 2
