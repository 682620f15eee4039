"""The last layers of a detector, and one whose scores differ from image to image without training."""

import torch
from torch import nn


def heads_of(model: nn.Module) -> list[nn.Linear]:
    """Each layer that gives logits: the classifier, then that of a multi-attentional network's backbone."""
    last = model.classifier if isinstance(model.classifier, nn.Linear) else model.classifier[-1]
    return [last, *([model.backbone.classifier] if hasattr(model, "backbone") else [])]


def with_large_heads(model: nn.Module) -> nn.Module:
    """The model itself, its new heads as large as torch draws a layer: from +-1/sqrt(features)."""
    with torch.no_grad():
        for head in heads_of(model):
            head.weight.mul_(100)
    return model
