"""People who don't exist: one photograph, warped, recoloured and relit into as many identities as are asked for.

Everything is drawn on a canvas somewhat larger than a video frame, so that the camera can move over it without showing
its edge. Outlines of face, mouth and head are given once, in pixels of the photograph, and follow every warp as masks:
no detector is needed to know where a face is.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, ndimage, special
from skimage import data, draw

Array = NDArray[np.floating]

FRAME_SIZE = 320
CANVAS_MARGIN = 36
CANVAS_SIZE = FRAME_SIZE + 2 * CANVAS_MARGIN

# canvas pixels per pixel of the photograph: a 256-pixel crop with a margin of 1.3 then has the frame's own scale
SCALE = 1.53
# (x, y) in the photograph that the middle of the canvas shows: just above the bridge of the nose, on the mirror axis
CENTRE = (225.0, 102.0)

# Polygons of (x, y) in pixels of the photograph, after dlib's 68 landmarks; the outline of the head by eye.
# fmt: off
FACE_OUTLINE = np.array([
    (183, 92), (181, 110), (182, 130), (185, 148), (193, 160), (206, 171), (221, 176), (236, 173), (250, 163),
    (259, 152), (265, 138), (269, 118), (268, 97), (254, 90), (226, 88), (198, 86),
])
INNER_OUTLINE = np.array([
    (188, 94), (189, 118), (194, 140), (205, 156), (222, 163), (240, 158), (253, 143), (260, 120), (262, 97),
    (250, 88), (226, 88), (200, 86),
])
MOUTH_OUTLINE = np.array([
    (193, 134), (206, 130), (224, 131), (242, 131), (254, 136), (250, 152), (239, 163), (222, 167), (206, 162),
    (196, 150),
])
HEAD_OUTLINE = np.array([
    (154, 96), (152, 76), (156, 58), (170, 43), (187, 36), (194, 27), (209, 19), (231, 15), (252, 18), (272, 29),
    (287, 40), (297, 60), (301, 86), (297, 106), (288, 119), (278, 133), (267, 139), (262, 155), (256, 174),
    (270, 183), (287, 202), (299, 225), (306, 240), (345, 262), (345, 330), (60, 330), (60, 235), (112, 206),
    (117, 188), (127, 169), (140, 156), (158, 149), (184, 149), (181, 132), (173, 124), (162, 110),
])
# fmt: on
WARP = 2.0  # deviation of the displacement field, pixels of the photograph: a face 100 wide keeps its order
HAIR_ENDS_AT = 128.0  # y in the photograph below which the head's outline holds neck and suit


class Layers(NamedTuple):
    """The photograph and its masks, all on one pixel grid: RGB [H,W,3] and masks [H,W], float32 in 0..1."""

    rgb: Array
    head: Array
    hair: Array
    face: Array
    inner: Array
    mouth: Array


@dataclass(frozen=True)
class Portrait:
    """One identity as a still picture.

    Args:
        image: float32 RGB [CANVAS_SIZE, CANVAS_SIZE, 3] in 0..1, free of sensor noise.
        face: soft mask [CANVAS_SIZE, CANVAS_SIZE] in 0..1: brows to chin, ear to ear.
        inner: as `face`, from brows to below the lips.
        mouth: as `face`, the lips and their surroundings.
    """

    image: Array
    face: Array
    inner: Array
    mouth: Array


@cache
def photograph() -> Layers:
    """scikit-image's astronaut (NASA, public domain), bundled with the package, and the masks of its parts."""
    rgb = data.astronaut().astype(np.float32) / 255
    shape = rgb.shape[:2]

    def mask(outline: NDArray, softness: float, shrink: int = 0) -> Array:
        filled = draw.polygon2mask(shape, outline[:, ::-1])
        filled = ndimage.binary_erosion(filled, iterations=shrink) if shrink else filled
        return ndimage.gaussian_filter(filled.astype(np.float32), softness)

    # shrunk, or a rim of the studio's bright wall would stay around the hair
    head, face = mask(HEAD_OUTLINE, 1.2, shrink=2), mask(FACE_OUTLINE, 1.5)
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    above_neck = special.expit((HAIR_ENDS_AT - rows) / 4)
    # the fringe lies inside the soft edge of the face, so a wide blur avoids a coloured seam along the forehead
    hair = head * above_neck * (1 - mask(FACE_OUTLINE, 5.0))
    return Layers(rgb, head, hair.astype(np.float32), face, mask(INNER_OUTLINE, 4.0), mask(MOUTH_OUTLINE, 2.5))


def make_portrait(seed: int, identity: int) -> Portrait:
    """Draw the identity: shape, skin, hair, light and background follow from `seed` and its number alone."""
    rng = generator(seed, identity)
    layers = _warped(rng)
    skin = _recoloured(layers.rgb, rng, cast=0.08) * rng.uniform(0.6, 1.05)
    image = _mixed(skin, _recoloured(layers.rgb, rng, cast=0.2) * rng.uniform(0.35, 1.2), layers.hair)
    image = image * (1 + _texture(rng) * layers.face)[..., None]
    image = _mixed(_background(rng), image, layers.head) * _light(rng)[..., None]
    return Portrait(np.clip(image, 0, 1).astype(np.float32), layers.face, layers.inner, layers.mouth)


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The generator of one stream of the demo `seed`: independent of every other stream, also of one that begins alike.

    A plain list of integers wouldn't do as a seed: NumPy pads it with zeros, so [0, 1] and [0, 1, 0] draw the same.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


def smooth_field(rng: np.random.Generator, cells: int) -> Array:
    """A smooth random field [CANVAS_SIZE, CANVAS_SIZE] of about unit deviation, with `cells` >= 4 knots a side."""
    knots = np.arange(cells)
    spline = interpolate.RectBivariateSpline(knots, knots, rng.standard_normal((cells, cells)))
    pixels = np.linspace(0, cells - 1, CANVAS_SIZE)
    return spline(pixels, pixels).astype(np.float32)


def _warped(rng: np.random.Generator) -> Layers:
    """The photograph and its masks on the canvas, under one dense smooth displacement: the identity's shape."""
    layers = photograph()
    offset = (np.arange(CANVAS_SIZE, dtype=np.float32) + 0.5 - CANVAS_SIZE / 2) / SCALE
    width, height = rng.uniform(0.9, 1.1, 2)
    mirror = rng.choice([-1, 1])
    x = CENTRE[0] + mirror * (offset[None, :] / width + WARP * smooth_field(rng, 6))
    y = CENTRE[1] + offset[:, None] / height + WARP * smooth_field(rng, 6)

    def sample(plane: Array, order: int) -> Array:
        return ndimage.map_coordinates(plane, (y, x), order=order, mode="reflect")

    rgb = np.stack([sample(layers.rgb[..., channel], 3) for channel in range(3)], axis=-1)
    return Layers(np.clip(rgb, 0, 1), *(sample(mask, 1) for mask in layers[1:]))


def _recoloured(rgb: Array, rng: np.random.Generator, cast: float) -> Array:
    """Another tone curve, saturation and colour cast, the latter within 1 ± `cast` per channel."""
    grey = rgb.mean(axis=-1, keepdims=True)
    toned = grey + (rgb - grey) * rng.uniform(0.5, 1.15)
    return np.clip(toned, 0, 1) ** np.float32(rng.uniform(0.8, 1.5)) * rng.uniform(1 - cast, 1 + cast, 3)


def _texture(rng: np.random.Generator) -> Array:
    """Pores and freckles: relative brightness around 0 that restores the detail lost to enlarging the photograph."""
    shape = (CANVAS_SIZE, CANVAS_SIZE)
    pores = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.9)
    freckles = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 2.0)
    return rng.uniform(0.035, 0.055) * pores / pores.std() + rng.uniform(0.0, 0.01) * freckles / freckles.std()


def _light(rng: np.random.Generator) -> Array:
    """A lamp to one side: a factor [CANVAS_SIZE, CANVAS_SIZE] that falls off smoothly over the picture."""
    angle, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.3)
    ramp = np.linspace(-1, 1, CANVAS_SIZE, dtype=np.float32)
    return rng.uniform(0.8, 1.1) * (1 + contrast * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]))


def _background(rng: np.random.Generator) -> Array:
    """A wall out of focus: two colours mixed by a smooth field."""
    first, second = rng.uniform(0.15, 0.8, (2, 1)) * rng.uniform(0.75, 1.25, (2, 3))
    mix = 0.5 + 0.5 * np.tanh(smooth_field(rng, int(rng.integers(4, 9))))
    return _mixed(np.broadcast_to(first, (CANVAS_SIZE, CANVAS_SIZE, 3)), second, mix)


def _mixed(below: NDArray, above: NDArray, alpha: Array) -> Array:
    """`above` over `below` [H,W,3] with opacity `alpha` [H,W]."""
    return below + (above - below) * alpha[..., None]
