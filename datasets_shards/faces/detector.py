"""Faces in a frame: dlib's HOG detector and its 68 landmarks."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.errors import InputError
from datasets_shards.frames.choice import FrameChoice

NUM_LANDMARKS = 68
LANDMARK_MODEL = "shape_predictor_68_face_landmarks.dat"
MAX_SEARCHED_PIXELS = 1 << 23
"""Of a frame that is searched as it is, before any doubling: 3840x2160 are. One of 8192x8192 took 3 GB and minutes."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in frame pixels, right and bottom exclusive; may reach over the frame's edge."""


@dataclass(frozen=True)
class FaceSettings:
    """How frames are sampled and faces are found.

    Args:
        frames_per_video: frames taken from each video, evenly spaced over the whole of it (all, if it has fewer); None
            for all.
        every: take the first frame and every k-th after it instead.
        upsample: how many times the frame is doubled before detection. Each doubling halves the smallest face that the
            detector sees (80 pixels without any) and makes detection about four times slower.
        reduce: detect on a frame that is so many times smaller; landmarks are found on the whole frame all the same.
            1 for the frame itself. It multiplies the smallest face that is seen. See `find_faces` for what it changes.
        min_face: a face whose box has a shorter side, in pixels, is dropped as too small.
    """

    frames_per_video: int | None = 32
    every: int | None = None
    upsample: int = 1
    reduce: int = 1
    min_face: int = 48

    @property
    def choice(self) -> FrameChoice:
        """Which frames are taken; `every` goes before `frames_per_video`."""
        return FrameChoice(None if self.every is not None else self.frames_per_video, self.every)

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "frames_per_video": self.choice.count,
            "frames": self.choice.describe(),
            "upsample": self.upsample,
            "reduce": self.reduce,
            "min_face": self.min_face,
        }


@dataclass(frozen=True)
class Face:
    """One face in a frame.

    Args:
        confidence: the detector's score; 0 is its threshold.
        box: where it is.
        landmarks: 68 iBUG points (x, y) in frame pixels, float32 [68, 2].
    """

    confidence: float
    box: Box
    landmarks: np.ndarray

    @property
    def side(self) -> int:
        """The box's shorter side, pixels."""
        left, top, right, bottom = self.box
        return min(right - left, bottom - top)

    @property
    def area(self) -> int:
        """Of the box, pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


def find_faces(image: np.ndarray, upsample: int = 1, reduce: int = 1) -> list[Face]:
    """Every face of a frame, by box.

    Landmarks are predicted for all of them while the frame is at hand, although tracking keeps one: that takes 2 ms a
    face, and a second decoding of the video much more.

    Measured on four FF++ videos (c23, 1280x720, 32 frames each, boxes of 130 to 224 pixels), in which every setting
    found the face in all 128 frames. Distance of the 68 landmarks, which dlib gives in whole pixels, to those of
    `upsample=1` without reduction, and mean displacement of the crop's corners, in pixels of the frame:

    =====================================  ========  =====  ======  ====  ====  =======
    setting                                ms/frame  mean   median  95 %  max   corners
    =====================================  ========  =====  ======  ====  ====  =======
    upsample=1, three pixels cut off the     336      0.71    1.00  2.00  5.00     1.29
    frame's left and top
    upsample=0                                79      0.76    1.00  2.00  8.06     1.16
    upsample=1, reduce=2                      85      0.81    1.00  2.24  9.43     1.32
    upsample=0, reduce=2                      21      0.75    1.00  2.00  9.43     1.22
    =====================================  ========  =====  ======  ====  ====  =======

    So detection on a reduced frame stays within a pixel in the mean, though not in every point, and moves landmarks
    hardly more than equal detection on a shifted frame does: what moves them is the box, which dlib gives in coarse
    steps (its sides there are 130, 156, 187 and 224 pixels, and nothing between). Looking again at full size around the
    found face gave nothing (0.73 to 0.75 in the mean) at up to twice the time. No reduction is the default all the
    same, because of the smaller faces that it loses.

    Args:
        image: RGB uint8 [H, W, 3].
        upsample: how many times the frame is doubled before detection.
        reduce: how many times the frame is made smaller before that, by the mean of blocks of pixels; more often where
            it would still have more than `MAX_SEARCHED_PIXELS`.
    """
    detector, predictor = _models()
    import dlib

    reduce = max(reduce, math.ceil(math.sqrt(image.shape[0] * image.shape[1] / MAX_SEARCHED_PIXELS)))
    height, width = (side // reduce * reduce for side in image.shape[:2])
    if not height or not width:
        return []
    searched = image
    if reduce > 1:
        blocks = image[:height, :width].reshape(height // reduce, reduce, width // reduce, reduce, 3)
        searched = ((blocks.sum((1, 3), dtype=np.uint32) + reduce**2 // 2) // reduce**2).astype(np.uint8)
    rectangles, scores, _ = detector.run(searched, upsample, 0.0)
    faces = []
    for found, score in zip(rectangles, scores, strict=True):
        left, top, right, bottom = (reduce * side for side in _edges(found))
        points = predictor(image, dlib.rectangle(left, top, right - 1, bottom - 1)).parts()
        landmarks = np.array([(point.x, point.y) for point in points], dtype=np.float32)
        faces.append(Face(score, (left, top, right, bottom), landmarks))
    return sorted(faces, key=lambda face: (face.box, face.confidence))


def _edges(rectangle: Any) -> Box:
    """dlib's right and bottom are the last pixel."""
    return rectangle.left(), rectangle.top(), rectangle.right() + 1, rectangle.bottom() + 1


def describe_detector() -> dict[str, str]:
    """For the table and the manifest: which detector, which face of several, and which landmark model."""
    return {
        "detector": f"dlib {metadata.version('dlib-bin')} frontal face detector (HOG)",
        "selection": "of each video the track that its mask covers, else the one with the largest total area; of "
        "images that differ in size the largest",
        "landmarks": f"{LANDMARK_MODEL} (face-recognition-models {metadata.version('face-recognition-models')})",
    }


def landmark_model() -> Path:
    """The landmark model's file; its package is located, not imported (that would need pkg_resources).

    Raises:
        InputError: the package `face-recognition-models` isn't installed.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("no landmark model; install it: pip install face-recognition-models")
    return Path(spec.submodule_search_locations[0]) / "models" / LANDMARK_MODEL


@lru_cache(maxsize=1)
def _models() -> tuple[Any, Callable[..., Any]]:
    """Detector and landmark predictor, loaded once per process (the latter has 100 MB)."""
    import dlib

    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(landmark_model()))
