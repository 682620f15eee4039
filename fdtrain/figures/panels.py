"""What the figures share: panels of faces with heat over them, and PNG files. No window system, no global state."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

DPI = 130
HEAT = "viridis"
"""A colour map that grows in lightness, for people with any kind of colour vision."""

HEAT_SHARE = 0.6
"""Weight of the heat over the face."""

LUMA = np.array([0.299, 0.587, 0.114])
"""Rec. 601. Under the heat the face is grey, so that colour means heat and nothing else."""


def draw_face(axes: Axes, image: np.ndarray) -> None:
    """One crop, uint8 `[H, W, 3]`, in its own colours."""
    axes.imshow(image, interpolation="nearest")
    _frameless(axes)


def draw_heat(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
    """One crop with heat over it, as a share of the panel's peak, which stands below.

    Args:
        axes: The panel.
        image: uint8 `[H, W, 3]`.
        heat: float `[H, W]`, not negative.
    """
    axes.imshow(image @ LUMA, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    peak = float(heat.max())
    axes.imshow(heat / peak if peak else heat, cmap=HEAT, vmin=0, vmax=1, alpha=HEAT_SHARE, interpolation="nearest")
    axes.set_xlabel(f"peak {peak:.2g}", fontsize=7, labelpad=2)
    _frameless(axes)


def draw_scale(figure: Figure, panels: list[Axes]) -> None:
    """A bar that says what the colours of `draw_heat` mean."""
    colours = ScalarMappable(Normalize(0, 1), HEAT)
    bar = figure.colorbar(colours, ax=panels, location="bottom", shrink=0.5, aspect=40, alpha=HEAT_SHARE)
    bar.set_label("share of the panel's peak", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def to_pictures(images: Tensor) -> np.ndarray:
    """uint8 `[B, 3, H, W]` on any device -> uint8 `[B, H, W, 3]`."""
    return images.permute(0, 2, 3, 1).cpu().numpy()


def over_crop(heat: Tensor, images: Tensor) -> np.ndarray:
    """Heat of any size, `[B, M, h, w]`, resized bilinearly to the crops `[B, 3, H, W]`: float32 `[B, M, H, W]`."""
    size = (images.shape[2], images.shape[3])
    return functional.interpolate(heat.float(), size=size, mode="bilinear", align_corners=False).cpu().numpy()


def set_title(figure: Figure, title: str, note: str) -> None:
    """What the figure shows and, on a second line, of what."""
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=10)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _frameless(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
