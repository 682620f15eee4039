"""Four ways to forge a face, each with a trace of its own, after what FaceForensics++'s four methods leave behind.

A manipulation paints a patch on the canvas of the target's portrait: new pixels and their opacity. The camera then
carries the patch over every frame as it carries the portrait, and what lies outside the patch keeps the target's
pixels, sensor noise included. A patch has no sensor noise of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from skimage import transform

from datasets_shards.demo.identities import CANVAS_SIZE, Array, Portrait


@dataclass(frozen=True)
class Patch:
    """Pixels to be laid over a portrait.

    Args:
        image: float32 RGB [CANVAS_SIZE, CANVAS_SIZE, 3] in 0..1.
        alpha: opacity [CANVAS_SIZE, CANVAS_SIZE] in 0..1.
        hard: cut at opacity 0.5 in the frame, pixel by pixel, in place of blending.
        jitter: deviation of the patch's position from frame to frame, pixels; frames are forged one by one.
    """

    image: Array
    alpha: Array
    hard: bool = False
    jitter: float = 0.0

    @cached_property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas outside of which the patch is transparent."""
        (box,) = ndimage.find_objects((self.alpha > 1 / 512).astype(np.uint8))
        return box


Manipulation = Callable[[Portrait, Portrait, np.random.Generator], Patch]
"""(target, source, generator) -> what to lay over the target."""


def deepfakes(target: Portrait, source: Portrait, rng: np.random.Generator) -> Patch:
    """The source's inner face at an autoencoder's low resolution, blended in with a colour that doesn't quite match."""
    face = _resampled(source.image, 1 / rng.uniform(1.7, 2.2))
    face = _matched(face, source.inner, target, strength=0.75) * rng.uniform(0.9, 1.1, 3)
    return Patch(_clipped(face), np.minimum(source.inner, target.inner), jitter=0.6)


def face2face(target: Portrait, source: Portrait, rng: np.random.Generator) -> Patch:
    """The target's own face, smoothed and sharpened again: pores gone, a halo along every edge."""
    smooth = _blurred(target.image, rng.uniform(1.8, 2.2))
    sharp = smooth + rng.uniform(1.8, 2.4) * (smooth - _blurred(smooth, 2.5))
    return Patch(_clipped(sharp), target.face)


def faceswap(target: Portrait, source: Portrait, rng: np.random.Generator) -> Patch:
    """The source's face as a coarse texture, pasted in as if with scissors: a hard border, and another light."""
    face = _resampled(source.image, 1 / rng.uniform(1.5, 1.8))
    face = _matched(face, source.face, target, strength=0.4) * rng.uniform(0.95, 1.05)
    return Patch(_clipped(face), np.minimum(source.face, target.face), hard=True, jitter=0.4)


def neural_textures(target: Portrait, source: Portrait, rng: np.random.Generator) -> Patch:
    """The target's mouth through a neural renderer: a low resolution, and the grid of its upsampling layers."""
    mouth = _resampled(target.image, 0.4)
    period = np.arange(CANVAS_SIZE) % 4 // 2 * 2 - 1
    grid = rng.uniform(0.03, 0.04) * np.multiply.outer(period, period)
    return Patch(_clipped(mouth + grid[..., None]), target.mouth)


MANIPULATIONS: dict[str, Manipulation] = {
    "Deepfakes": deepfakes,
    "Face2Face": face2face,
    "FaceSwap": faceswap,
    "NeuralTextures": neural_textures,
}


def _matched(image: Array, mask: Array, target: Portrait, strength: float) -> Array:
    """`image` with its colours under `mask` moved by `strength` (0..1) to mean and deviation of the target's there."""
    mean, deviation = _statistics(image, mask)
    goal_mean, goal_deviation = _statistics(target.image, mask)
    return image + strength * ((image - mean) * (goal_deviation / deviation) + goal_mean - image)


def _statistics(image: Array, mask: Array) -> tuple[Array, Array]:
    """Mean and standard deviation [3] of an image [H,W,3], weighted by a mask [H,W]."""
    weights = (mask / mask.sum())[..., None]
    mean = (image * weights).sum((0, 1))
    return mean, np.sqrt((((image - mean) ** 2) * weights).sum((0, 1)))


def _resampled(image: Array, scale: float) -> Array:
    """Reduced by `scale` < 1 and enlarged back to its size."""
    side = round(CANVAS_SIZE * scale)
    small = transform.resize(image, (side, side), order=1, anti_aliasing=True)
    return transform.resize(small, image.shape[:2], order=1)


def _blurred(image: Array, sigma: float) -> Array:
    return ndimage.gaussian_filter(image, (sigma, sigma, 0))


def _clipped(image: Array) -> Array:
    return np.clip(image, 0, 1).astype(np.float32)
