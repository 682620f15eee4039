"""From a face in a frame to a square crop: upright in a canonical pose, or the square around its box."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from skimage.transform import SimilarityTransform

from datasets_shards.errors import InputError
from datasets_shards.jpeg.dctscale import DCT_SIZE, scaled_size
from datasets_shards.jpeg.mozjpeg import libvips_version

# Eyes, nose tip and mouth corners of the upright mean face in 112x112 pixels that InsightFace (ArcFace) aligns to.
# DeepfakeBench aligns to it as well, but by other landmarks: see `BENCHMARK_LANDMARKS`.
TEMPLATE_SIZE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)

BENCHMARK_LANDMARKS = [37, 44, 30, 49, 55]
"""The five points of DeepfakeBench's preprocessing: eyelids, nose tip, and lips beside the mouth's corners.

Its faces are some 6 % smaller in the crop than those aligned by eye centres and mouth corners, and turned by 2 degrees.
"""

SIMILARITY, BENCHMARK, BOX, AS_THEY_ARE = "similarity", "deepfakebench", "none", "as they are"
ALIGNMENTS = {
    SIMILARITY: "least-squares similarity, 5 points (from 68 landmarks) to the ArcFace template",
    BENCHMARK: "DeepfakeBench's: least-squares similarity, landmarks 37, 44, 30, 49, 55 of 68 to the ArcFace template",
    BOX: "square around the detected box, moved into the frame where it fits",
    AS_THEY_ARE: "the source's own crops",
}
RESAMPLING = (
    "where shrinking, low-pass by the cubic kernel (a = -1/2) stretched by 1/scale; then bicubic; in floating point; "
    "edge pixels repeated"
)
MASK_RESAMPLING = "the same, but by the triangle kernel, then bilinear"
BENCHMARK_RESAMPLING = "bilinear at 1/32 of a pixel, without a filter; black beyond the frame"  # OpenCV's warpAffine


@dataclass(frozen=True)
class CropSettings:
    """How a crop is cut.

    Args:
        size: side of the square crop, pixels.
        margin: side of the crop over the side of the tight template, or over the longer side of the detected box; 1.3
            shows the whole head's outline, and is FF++'s own.
        align: "similarity" turns and scales the face to a canonical pose; "deepfakebench" does so by that benchmark's
            landmarks, resampling and borders, for weights that were trained with it; "none" cuts the square around its
            box, as the code that came with FF++ does; "as they are" is for sources of crops, which aren't cut at all.
        dct_scale: N, where crops are then scaled by 8/N in the DCT domain; 8 leaves them as they are.
    """

    size: int = 256
    margin: float = 1.3
    align: str = SIMILARITY
    dct_scale: int = DCT_SIZE

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> Self:
        """The settings that `describe` gave this for; what else a manifest says of its crops may stand beside it.

        Raises:
            InputError: it isn't such a description.
        """
        try:
            align = next(name for name, text in ALIGNMENTS.items() if text == description["alignment"])
            margin = cls.margin if align == AS_THEY_ARE else float(description["margin"])
            _, _, denominator = description["dct_scale"].partition("/")
            return cls(int(description["unscaled_size"]), margin, align, int(denominator))
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise InputError(f"not the description of crops as this release cuts them ({error!r})") from None

    @property
    def image_size(self) -> int:
        """Side of the image after scaling, pixels."""
        return scaled_size(self.size, self.dct_scale)

    def describe(self) -> dict[str, Any]:
        """For the manifest: everything that the pixels of a crop follow from, given frame, box and landmarks.

        "size" is that of the images in the set, after scaling.
        """
        cut = self.align != AS_THEY_ARE
        resampling = BENCHMARK_RESAMPLING if self.align == BENCHMARK else RESAMPLING
        mask_resampling = "the same" if self.align == BENCHMARK else MASK_RESAMPLING
        return {
            "size": self.image_size,
            "margin": self.margin if cut else None,
            "alignment": ALIGNMENTS[self.align],
            "resampling": resampling if cut else "none",
            "mask_resampling": mask_resampling if cut else "none",
            "library": libvips_version() if cut else "none",
            "dct_scale": f"{DCT_SIZE}/{self.dct_scale}",
            "unscaled_size": self.size,
        }


def five_points(landmarks: np.ndarray, align: str = SIMILARITY) -> np.ndarray:
    """Left and right eye, nose tip, left and right mouth corner [5, 2] out of the 68 iBUG landmarks [68, 2]."""
    if align == BENCHMARK:
        return landmarks[BENCHMARK_LANDMARKS].astype(np.float64)
    return np.stack(
        [landmarks[36:42].mean(0), landmarks[42:48].mean(0), landmarks[30], landmarks[48], landmarks[54]]
    ).astype(np.float64)


def template_points(settings: CropSettings) -> np.ndarray:
    """Return the places of the five points in the crop: [5, 2], pixels."""
    border = TEMPLATE_SIZE * (settings.margin - 1) / 2
    return (TEMPLATE + border) * settings.size / (TEMPLATE_SIZE * settings.margin)


def estimate_alignment(
    landmarks: np.ndarray, box: np.ndarray, settings: CropSettings, frame: tuple[int, ...]
) -> np.ndarray:
    """Return the map of frame to crop pixels (rotation, one scale, shift; pixel centres have whole numbers): [3, 3].

    Args:
        landmarks: 68 points in the frame, [68, 2], pixels.
        box: left, top, right, bottom of the face in the frame, pixels, right and bottom exclusive.
        settings: with any `align` but "as they are".
        frame: height and width of the frame.

    Raises:
        ValueError: the landmarks lie in one point.
    """
    assert settings.align != AS_THEY_ARE
    if settings.align == BOX:
        left, top, side = square_around(box, settings.margin, frame)
        scale = settings.size / side
        # The square's edge is half a pixel before the centre of its first pixel.
        return np.array(
            [[scale, 0, (0.5 - left) * scale - 0.5], [0, scale, (0.5 - top) * scale - 0.5], [0, 0, 1]],
        )
    return estimate_similarity(landmarks, settings)


def estimate_similarity(landmarks: np.ndarray, settings: CropSettings) -> np.ndarray:
    """The similarity that takes the five points to the template's, least squares: [3, 3].

    Umeyama (1991), "Least-squares estimation of transformation parameters between two point patterns".
    """
    transform = SimilarityTransform.from_estimate(five_points(landmarks, settings.align), template_points(settings))
    if not transform:
        raise ValueError(f"no alignment: {transform}")
    return np.asarray(transform.params)


def square_around(box: np.ndarray, margin: float, frame: tuple[int, ...]) -> tuple[int, int, int]:
    """The square about a box's centre, `margin` times its longer side: left, top and side, whole pixels.

    As in FF++'s code it is moved into a frame that it would overlap; where the frame is narrower than the square it
    stays centred, and beyond the frame the edge pixels are repeated (FF++ cuts it off, which is no square).

    Args:
        box: left, top, right, bottom, pixels.
        margin: enlargement.
        frame: height and width of the frame.
    """
    side = int(max(box[2] - box[0], box[3] - box[1]) * margin)
    place = []
    for low, high, length in ((box[0], box[2], frame[1]), (box[1], box[3], frame[0])):
        start = int(low + high - side) // 2
        place.append(min(max(start, 0), length - side) if side <= length else start)
    return place[0], place[1], side


def apply_alignment(alignment: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points in the frame [N, 2] -> points in the crop [N, 2], float64, pixels."""
    return points @ alignment[:2, :2].T + alignment[:2, 2]


def cut_crop(image: np.ndarray, alignment: np.ndarray, crop: CropSettings) -> np.ndarray:
    """Resample the crop out of the frame, once.

    A frame of one channel is taken as a mask: it is interpolated linearly, for a bicubic kernel would ring at its
    edges.

    Args:
        image: frame, RGB uint8 [H, W, 3], or mask, uint8 [H, W].
        alignment: frame pixels -> crop pixels, [3, 3]; pixel centres have whole coordinates.
        crop: its size and, by `align`, how it is resampled.

    Returns:
        uint8 [size, size, 3] or [size, size]; outside of the frame its edge pixels are repeated, or black.
    """
    import pyvips

    left, top, right, bottom = source_region(alignment, crop.size)
    frame = pyvips.Image.new_from_array(image)
    outside = "black" if crop.align == BENCHMARK else "copy"
    region = frame.embed(-left, -top, right - left, bottom - top, extend=outside).cast("float")
    if crop.align == BENCHMARK:
        places = _benchmark_places(alignment, crop.size) - [left, top]
        bilinear = pyvips.Interpolate.new("bilinear")
        cut = region.mapim(pyvips.Image.new_from_array(places), interpolate=bilinear)
    else:
        kernel, interpolation = (_cubic, "bicubic") if image.ndim == 3 else (_triangle, "bilinear")
        weights = _low_pass(kernel, _shrink(alignment))
        if len(weights) > 1:
            # The default, integer precision approximates weights, and does so otherwise where there is no SIMD.
            region = region.convsep(pyvips.Image.new_from_array([weights]), precision="float")
        shift = apply_alignment(alignment, np.array([[left, top]], dtype=np.float64))[0]
        cut = region.affine(
            [float(v) for v in alignment[:2, :2].ravel()],
            odx=float(shift[0]),
            ody=float(shift[1]),
            oarea=[0, 0, crop.size, crop.size],
            interpolate=pyvips.Interpolate.new(interpolation),
        )
    return cut.rint().cast("uchar").numpy().reshape(crop.size, crop.size, *image.shape[2:])


def _benchmark_places(alignment: np.ndarray, size: int) -> np.ndarray:
    """Return the place in the frame of each crop pixel, [size, size, 2], in OpenCV's steps of 1/32 of a pixel."""
    rows, columns = np.indices((size, size)).reshape(2, -1)
    places = apply_alignment(np.linalg.inv(alignment), np.stack([columns, rows], axis=1))
    return (np.floor(places * 32 + 0.5) / 32).reshape(size, size, 2)


KERNEL_REACH = 2
"""Crop pixels from their middle beyond which the kernels are 0."""


def _shrink(alignment: np.ndarray) -> float:
    """Return the frame pixels per crop pixel; 1 where the crop isn't smaller."""
    return max(1.0, 1 / math.hypot(alignment[0, 0], alignment[1, 0]))


def _low_pass(kernel: Callable[[np.ndarray], np.ndarray], shrink: float) -> list[float]:
    """Return one axis of the filter against aliasing: `kernel` stretched to the crop's pixels, as Pillow shrinks."""
    reach = math.ceil(KERNEL_REACH * shrink) - 1
    weights = kernel(np.arange(-reach, reach + 1) / shrink)
    return np.trim_zeros(weights / weights.sum()).tolist()


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys (1981), "Cubic convolution interpolation for digital image processing", equation 4 with a = -1/2."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def source_region(alignment: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """All that a crop's pixels depend on: left, top, right, bottom in the frame, which it may reach beyond.

    Args:
        alignment: frame pixels -> crop pixels, [3, 3].
        size: side of the crop, pixels.
    """
    corners = np.array([[0, 0], [0, size], [size, 0], [size, size]], dtype=np.float64)
    quad = apply_alignment(np.linalg.inv(alignment), corners)
    # What interpolation and filter reach beyond the quadrilateral.
    reach = 4 + math.ceil(KERNEL_REACH * _shrink(alignment))
    left, top = (math.floor(v) - reach for v in quad.min(0))
    right, bottom = (math.ceil(v) + reach for v in quad.max(0))
    return left, top, right, bottom
