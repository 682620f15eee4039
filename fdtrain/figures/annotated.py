"""One scored frame for people: where the face is, what its score is, and what the model looked at."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from fdtrain.figures.attention import attention_maps, has_attention
from fdtrain.figures.gradcam import grad_cam
from fdtrain.figures.panels import draw_face, draw_heat, draw_scale, over_crop, set_title, to_pictures
from fdtrain.tasks import Task

HEIGHT = 2.6
"""Of a panel, inches."""

BOX_COLOUR = "#E69F00"
"""Orange of Okabe and Ito, seen over light and dark skin by people with any kind of colour vision."""


def annotated_figure(
    task: Task,
    layer: nn.Module,
    crop: Tensor,
    score: float,
    title: str,
    note: str = "",
    frame: np.ndarray | None = None,
    box: Sequence[int] | None = None,
) -> Figure:
    """The frame with the face's box and score, the crop, and over it the attention maps or else Grad-CAM.

    Args:
        task: In evaluation mode.
        layer: `cam_layer` of its model.
        crop: uint8 `[1, 3, S, S]` on the task's device.
        score: P(fake) of it.
        title: Which frame of which file.
        note: Second line of the title.
        frame: uint8 `[H, W, 3]`; None where the crop is all that there is.
        box: Left, top, right, bottom in it, pixels, right and bottom exclusive.
    """
    if has_attention(task):
        maps = attention_maps(task, crop)
        names = [f"attention map {m}" for m in range(1, 1 + maps.shape[1])]
    else:
        maps, names = grad_cam(task, layer, crop)[:, None], ["Grad-CAM"]
    heats, picture = over_crop(maps, crop)[0], to_pictures(crop)[0]
    widths = [1.0] * (1 + len(heats)) if frame is None else [frame.shape[1] / frame.shape[0], *[1.0] * (1 + len(heats))]
    figure = Figure(figsize=(max(6.2, HEIGHT * sum(widths)), HEIGHT + 1.3), layout="constrained")
    panels = list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
    crops = panels
    if frame is not None:
        _draw_frame(panels[0], frame, box, score)
        crops = panels[1:]
    draw_face(crops[0], picture)
    crops[0].set_title(f"crop, P(fake) {score:.3f}", fontsize=8)
    for axes, heat, name in zip(crops[1:], heats, names, strict=True):
        draw_heat(axes, picture, heat)
        axes.set_title(name, fontsize=8)
    draw_scale(figure, panels)
    set_title(figure, title, note)
    return figure


def _draw_frame(axes: Axes, frame: np.ndarray, box: Sequence[int] | None, score: float) -> None:
    draw_face(axes, frame)
    axes.set_title("frame", fontsize=8)
    if box is None:
        return
    left, top, right, bottom = box
    # Pixel centres have whole numbers, so the edge of a pixel is half a pixel before.
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color=BOX_COLOUR, lw=1.5))
    label = {"facecolor": BOX_COLOUR, "edgecolor": "none", "pad": 1.5}
    axes.text(left, top, f"{score:.2f}", fontsize=7, color="black", va="bottom", bbox=label, clip_on=True)
