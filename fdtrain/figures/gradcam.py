"""Grad-CAM (Selvaraju et al., ICCV 2017): where in the face the last convolutional features speak for fake."""

import numpy as np
import torch
from captum.attr import LayerGradCam
from matplotlib.figure import Figure
from torch import Tensor, nn

from fdtrain.figures.panels import draw_face, draw_heat, draw_scale, over_crop, set_title, to_pictures
from fdtrain.figures.samples import Samples
from fdtrain.tasks import Task

COLUMNS = 8
"""Samples side by side."""


def grad_cam(task: Task, layer: nn.Module, images: Tensor) -> Tensor:
    """Grad-CAM of logit(fake) - logit(real), whose sigmoid is P(fake).

    A network with one output has a fake logit of 0, whatever it sees; the difference says something for every model.

    Args:
        task: In evaluation mode.
        layer: `cam_layer` of its model; its output is `[B, C, h, w]`.
        images: uint8 `[B, 3, H, W]` on the task's device. They pass the network one by one, since the whole graph is
            kept for the gradient. A caller's `no_grad` or `inference_mode` makes no difference.

    Returns:
        float32 `[B, h, w]`, not negative, in the units of the logits: relu(sum over C of features times the spatial
        mean of their gradients).
    """

    def evidence(pixels: Tensor) -> Tensor:
        logits = task.model(pixels).float()
        return logits[:, 1] - logits[:, 0]

    explain = LayerGradCam(evidence, layer)
    maps = []
    with torch.inference_mode(False), torch.enable_grad():
        for image in images.split(1):
            # The gradient starts at the pixels, so that frozen weights don't cut it off.
            pixels = task.prepare(image).clone().requires_grad_()
            maps.append(explain.attribute(pixels, relu_attributions=True).detach()[:, 0].float())
    return torch.cat(maps)


def gradcam_figure(task: Task, layer: nn.Module, images: Tensor, samples: Samples, note: str = "") -> Figure:
    """Each sample's face with its Grad-CAM below, `COLUMNS` samples side by side.

    Args:
        task: As of `grad_cam`.
        layer: As of `grad_cam`.
        images: uint8 `[B, 3, H, W]`, on the task's device.
        samples: What they are.
        note: Second line of the title.
    """
    heats, pictures = over_crop(grad_cam(task, layer, images)[:, None], images)[:, 0], to_pictures(images)
    columns = min(COLUMNS, len(samples))
    bands = -(-len(samples) // columns)
    figure = Figure(figsize=(max(6.2, 1.6 * columns), 3.7 * bands + 1.2), layout="constrained")
    panels = figure.subplots(2 * bands, columns, squeeze=False)
    for i, (picture, heat) in enumerate(zip(pictures, heats, strict=True)):
        band, column = divmod(i, columns)
        face, below = panels[2 * band][column], panels[2 * band + 1][column]
        draw_face(face, picture)
        face.set_title(samples.caption(i), fontsize=8)
        draw_heat(below, picture, heat)
    for axes in np.ravel(panels):
        if not axes.images:  # the last band may have room left
            axes.set_axis_off()
    draw_scale(figure, list(np.ravel(panels)))
    set_title(figure, "Grad-CAM: what speaks for fake rather than real", note)
    return figure
