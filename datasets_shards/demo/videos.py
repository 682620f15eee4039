"""Portraits and patches in motion, as H.264 videos."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from numpy.typing import NDArray
from skimage import transform

from datasets_shards.demo.identities import CANVAS_SIZE, FRAME_SIZE, Array, Portrait
from datasets_shards.demo.manipulations import Patch

FRAMES_PER_SECOND = 25
SENSOR_NOISE = 0.014

Window = tuple[slice, slice]
"""Rows and columns."""
WHOLE_FRAME: Window = (slice(0, FRAME_SIZE), slice(0, FRAME_SIZE))


@dataclass(frozen=True)
class View:
    """Where the camera stands in one frame.

    Args:
        matrix: 3x3, from frame to canvas pixels (x, y).
        brightness: factor on all pixel values.
    """

    matrix: NDArray[np.float64]
    brightness: float

    def of(self, layer: Array, window: Window = WHOLE_FRAME) -> Array:
        """What `window` of this frame shows of a layer [CANVAS_SIZE, CANVAS_SIZE, C], by bicubic interpolation."""
        rows, columns = window
        matrix = self.matrix @ _translation(columns.start, rows.start)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        return transform.warp(layer, matrix, output_shape=shape, order=3, clip=False)

    def window(self, box: Window) -> Window:
        """The smallest part of the frame that shows the rows and columns `box` of the canvas."""
        rows, columns = box
        corners = [(x, y) for x in (columns.start, columns.stop) for y in (rows.start, rows.stop)]
        inside = transform.AffineTransform(matrix=self.matrix).inverse(corners).clip(0, FRAME_SIZE)
        (left, top), (right, bottom) = np.floor(inside.min(axis=0)), np.ceil(inside.max(axis=0))
        return slice(int(top), int(bottom)), slice(int(left), int(right))

    def shifted(self, x: float, y: float) -> Self:
        """The view in which everything appears `x` pixels further right and `y` further down."""
        return replace(self, matrix=self.matrix @ _translation(-x, -y))


def camera(rng: np.random.Generator, frames: int) -> list[View]:
    """A hand-held camera: slow pan, roll, zoom and exposure drift, one view per frame."""
    # more than half a swing and less than two in one second, whatever the video's length
    time = np.arange(frames) / FRAMES_PER_SECOND

    def drift(middle: float, swing: float) -> NDArray[np.float64]:
        rate, phase = rng.uniform(0.5, 1.8), rng.uniform(0, 2 * np.pi)
        return rng.uniform(-middle, middle) + swing * np.sin(2 * np.pi * rate * time + phase)

    tracks = zip(drift(6, 4), drift(6, 4), drift(2.5, 1.5), drift(0.02, 0.012), drift(0.03, 0.03), strict=True)
    return [_view(*track) for track in tracks]


def _view(x: float, y: float, roll: float, zoom: float, exposure: float) -> View:
    """Pan in pixels, roll in degrees, zoom and exposure relative to 1."""
    turned = transform.SimilarityTransform(scale=1 / (1 + zoom), rotation=np.deg2rad(roll)).params
    middle, canvas_middle = (FRAME_SIZE - 1) / 2, (CANVAS_SIZE - 1) / 2
    matrix = _translation(canvas_middle + x, canvas_middle + y) @ turned @ _translation(-middle, -middle)
    return View(matrix, 1 + float(exposure))


def _translation(x: float, y: float) -> NDArray[np.float64]:
    return transform.AffineTransform(translation=(x, y)).params


def film(portrait: Portrait, views: list[View], rng: np.random.Generator) -> list[Array]:
    """The real video: frames float32 [FRAME_SIZE, FRAME_SIZE, 3] in 0..1, each with fresh sensor noise.

    The noise is one of brightness, since 4:2:0 video keeps little of a colour's.
    """
    frames = []
    for view in views:
        clean = view.of(portrait.image) * view.brightness
        noise = SENSOR_NOISE * rng.standard_normal((*clean.shape[:2], 1), dtype=np.float32)
        frames.append(np.clip(clean + noise, 0, 1).astype(np.float32))
    return frames


def forge(frames: list[Array], views: list[View], patch: Patch, rng: np.random.Generator) -> Iterator[Array]:
    """The fake video: frames as from `film`, with the patch laid over each."""
    layer = np.dstack([patch.image, patch.alpha])
    for frame, view in zip(frames, views, strict=True):
        shifted = view.shifted(*rng.normal(0, patch.jitter, 2))
        window = shifted.window(patch.box)
        seen = shifted.of(layer, window)
        alpha = (seen[..., 3:] > 0.5).astype(np.float32) if patch.hard else seen[..., 3:].clip(0, 1)
        forged = frame.copy()
        forged[window] += (seen[..., :3] * view.brightness - frame[window]) * alpha
        yield forged.clip(0, 1)


def write_video(path: Path, frames: Iterable[Array]) -> None:
    """Encode frames [FRAME_SIZE, FRAME_SIZE, 3] in 0..1 as H.264 in MP4; the same frames give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND))
        stream.width = stream.height = FRAME_SIZE
        stream.pix_fmt = "yuv420p"
        # One thread: x264's slicing, and so the bytes, would otherwise follow the machine's number of cores. And no
        # AVX-512: with it x264 writes other bytes for the same pixels once in a while, by what memory held before.
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1", "x264-params": "asm=sse4.2"}
        for frame in frames:
            pixels = np.rint(frame * 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
