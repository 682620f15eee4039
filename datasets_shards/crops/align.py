"""From a face in a frame to an upright square crop."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from skimage.transform import SimilarityTransform

# Eyes, nose tip and mouth corners of the upright mean face in 112x112 pixels that InsightFace (ArcFace) aligns to and
# that DeepfakeBench's crops use as well, so detectors trained on either see our faces where they expect them.
TEMPLATE_SIZE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


@dataclass(frozen=True)
class CropSettings:
    """How a crop is cut.

    Args:
        size: side of the square crop, pixels.
        margin: side of the crop over the side of the tight template; 1.3 shows the whole head's outline.
    """

    size: int = 256
    margin: float = 1.3

    def describe(self) -> dict[str, Any]:
        """For the manifest: everything that the pixels of a crop follow from, given frame and landmarks."""
        return {
            "size": self.size,
            "margin": self.margin,
            "alignment": "least-squares similarity, 5 points (from 68 landmarks) to the ArcFace template",
            "resampling": "Gaussian with sigma (1/scale - 1)/2 where shrinking, then bicubic; edge pixels repeated",
        }


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Left and right eye, nose tip, left and right mouth corner [5, 2] out of the 68 iBUG landmarks [68, 2]."""
    return np.stack(
        [landmarks[36:42].mean(0), landmarks[42:48].mean(0), landmarks[30], landmarks[48], landmarks[54]]
    ).astype(np.float64)


def template_points(settings: CropSettings) -> np.ndarray:
    """Where the five points lie in the crop: [5, 2], pixels."""
    border = TEMPLATE_SIZE * (settings.margin - 1) / 2
    return (TEMPLATE + border) * settings.size / (TEMPLATE_SIZE * settings.margin)


def estimate_alignment(landmarks: np.ndarray, settings: CropSettings) -> np.ndarray:
    """The similarity (rotation, one scale, shift) that takes frame pixels to crop pixels, least squares: [3, 3].

    Umeyama (1991), "Least-squares estimation of transformation parameters between two point patterns".

    Args:
        landmarks: 68 points in the frame, [68, 2], pixels.
    """
    transform = SimilarityTransform.from_estimate(five_points(landmarks), template_points(settings))
    if not transform:
        raise ValueError(f"no alignment: {transform}")
    return np.asarray(transform.params)


def apply_alignment(alignment: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points in the frame [N, 2] -> points in the crop [N, 2], float64, pixels."""
    return points @ alignment[:2, :2].T + alignment[:2, 2]


def cut_crop(image: np.ndarray, alignment: np.ndarray, size: int) -> np.ndarray:
    """Resample the crop out of the frame, once.

    Args:
        image: frame, RGB uint8 [H, W, 3].
        alignment: frame pixels -> crop pixels, [3, 3]; pixel centres have whole coordinates.
        size: side of the crop, pixels.

    Returns:
        RGB uint8 [size, size, 3]; outside of the frame its edge pixels are repeated.
    """
    import pyvips

    scale = math.hypot(alignment[0, 0], alignment[1, 0])
    sigma = max(0.0, (1 / scale - 1) / 2)  # what skimage.transform.resize takes against aliasing
    corners = np.array([[0, 0], [0, size], [size, 0], [size, size]], dtype=np.float64)
    quad = apply_alignment(np.linalg.inv(alignment), corners)
    reach = 4 + math.ceil(4 * sigma)  # the kernels' reach beyond the quadrilateral
    left, top = (math.floor(v) - reach for v in quad.min(0))
    right, bottom = (math.ceil(v) + reach for v in quad.max(0))

    frame = pyvips.Image.new_from_array(image)
    region = frame.embed(-left, -top, right - left, bottom - top, extend="copy")
    if sigma > 0.2:  # a narrower kernel is a single pixel
        region = region.gaussblur(sigma, min_ampl=0.02)
    matrix = alignment[:2, :2]
    shift = apply_alignment(alignment, np.array([[left, top]], dtype=np.float64))[0]
    crop = region.affine(
        [float(v) for v in matrix.ravel()],
        odx=float(shift[0]),
        ody=float(shift[1]),
        oarea=[0, 0, size, size],
        interpolate=pyvips.Interpolate.new("bicubic"),
    )
    return crop.numpy()
