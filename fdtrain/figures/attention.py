"""The attention maps of the multi-attentional network, over the faces."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fdtrain.figures.panels import draw_face, draw_heat, draw_scale, over_crop, set_title, to_pictures
from fdtrain.figures.samples import Samples
from fdtrain.models.multi_attention import MultiAttentionNetwork
from fdtrain.tasks import Task


def has_attention(task: Task) -> bool:
    """Whether the task's model has attention maps to draw."""
    return isinstance(task.model, MultiAttentionNetwork)


@torch.inference_mode()
def attention_maps(task: Task, images: Tensor) -> Tensor:
    """uint8 `[B, 3, H, W]` -> the maps, float32 `[B, M, h, w]`, not negative.

    Args:
        task: Of a model that `has_attention`, in evaluation mode.
        images: On the task's device. They pass the network one by one, so that memory doesn't grow with their number.
    """
    assert isinstance(task.model, MultiAttentionNetwork)
    return torch.cat([task.model.describe(task.prepare(image)).maps for image in images.split(1)])


def attention_figure(task: Task, images: Tensor, samples: Samples, note: str = "") -> Figure:
    """A row for each sample: the face, then each of its M maps over it.

    Args:
        task: As of `attention_maps`.
        images: uint8 `[B, 3, H, W]`, on the task's device.
        samples: What they are.
        note: Second line of the title.
    """
    heats, pictures = over_crop(attention_maps(task, images), images), to_pictures(images)
    columns = 1 + heats.shape[1]
    figure = Figure(figsize=(max(6.2, 1.55 * columns + 1.4), 1.7 * len(samples) + 1.3), layout="constrained")
    panels = figure.subplots(len(samples), columns, squeeze=False)
    for i, (row, picture) in enumerate(zip(panels, pictures, strict=True)):
        draw_face(row[0], picture)
        row[0].set_ylabel(samples.caption(i), fontsize=8, rotation=0, ha="right", va="center")
        for axes, heat in zip(row[1:], heats[i], strict=True):
            draw_heat(axes, picture, heat)
    for axes, title in zip(panels[0], ["face", *(f"map {m}" for m in range(1, columns))], strict=True):
        axes.set_title(title, fontsize=8)
    draw_scale(figure, list(np.ravel(panels)))
    set_title(figure, "Attention maps", note)
    return figure
