"""Faces in sampled frames: dlib's HOG detector and its 68 landmarks."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.errors import InputError
from datasets_shards.frames import frame_numbers, read_frames
from datasets_shards.frames.choice import FrameChoice
from datasets_shards.frames.errors import FrameError
from datasets_shards.schema import file_sha256
from datasets_shards.sources import Video

OK = "ok"
NO_FACE = "no face"
TOO_SMALL = "too small"
UNREADABLE = "unreadable video"
STATUSES = (OK, NO_FACE, TOO_SMALL, UNREADABLE)

NUM_LANDMARKS = 68
LANDMARK_MODEL = "shape_predictor_68_face_landmarks.dat"


@dataclass(frozen=True)
class FaceSettings:
    """How frames are sampled and faces are found.

    Args:
        frames_per_video: frames taken from each video, evenly spaced over the whole of it; all, if it has fewer.
        upsample: how many times the frame is doubled before detection. Each doubling halves the smallest face that the
            detector sees (80 pixels without any) and makes detection about four times slower.
        min_face: a face whose box has a shorter side, in pixels, is dropped as too small.
    """

    frames_per_video: int = 32
    upsample: int = 1
    min_face: int = 48


@dataclass(frozen=True)
class Face:
    """One face in a frame.

    Args:
        confidence: the detector's score; 0 is its threshold.
        box: left, top, right, bottom in frame pixels, right and bottom exclusive; may reach over the frame's edge.
        landmarks: 68 iBUG points (x, y) in frame pixels, float32 [68, 2].
    """

    confidence: float
    box: tuple[int, int, int, int]
    landmarks: np.ndarray

    @property
    def side(self) -> int:
        """The box's shorter side, pixels."""
        left, top, right, bottom = self.box
        return min(right - left, bottom - top)


def find_face(image: np.ndarray, upsample: int = 1) -> Face | None:
    """The largest face of a frame (of equals the most confident), or None.

    Args:
        image: RGB uint8 [H, W, 3].
        upsample: how many times the frame is doubled before detection.

    The largest rather than the most confident: in FF++ the face that was manipulated is the one in front, while a
    background face or a false detection is small.
    """
    detector, predictor = _models()
    rectangles, scores, _ = detector.run(image, upsample, 0.0)
    if not rectangles:
        return None
    best = max(range(len(scores)), key=lambda i: (rectangles[i].area(), scores[i]))
    found = rectangles[best]
    points = predictor(image, found).parts()
    return Face(
        confidence=scores[best],
        box=(found.left(), found.top(), found.right() + 1, found.bottom() + 1),
        landmarks=np.array([(point.x, point.y) for point in points], dtype=np.float32),
    )


def detect_video(video: Video, settings: FaceSettings) -> list[dict[str, Any]]:
    """Sample a video and look for a face in every frame: one row of `facetable.FACES_SCHEMA` per sampled frame.

    A video that can't be read gives a single row with its error, so that it is counted and doesn't stop the rest.
    """
    facts: dict[str, Any] = {
        "method": video.method,
        "video": video.name,
        "target": video.target,
        "source": video.source,
        "path": video.relative,
        "compression": video.compression,
    }
    try:
        facts |= {"bytes": video.path.stat().st_size, "sha256": file_sha256(video.path)}
        numbers = FrameChoice(settings.frames_per_video).pick(frame_numbers(video))
        return [facts | _frame_row(number, image, settings) for number, image in read_frames(video, numbers)]
    except FrameError as error:
        return [facts | {"status": UNREADABLE, "reason": error.problem}]
    except OSError as error:
        return [facts | {"status": UNREADABLE, "reason": error.strerror or str(error)}]


def _frame_row(number: int, image: np.ndarray, settings: FaceSettings) -> dict[str, Any]:
    height, width = image.shape[:2]
    row: dict[str, Any] = {"frame": number, "frame_width": width, "frame_height": height, "reason": ""}
    face = find_face(image, settings.upsample)
    if face is None:
        return row | {"status": NO_FACE}
    row |= {"confidence": face.confidence, "box": list(face.box), "landmarks": face.landmarks.ravel()}
    if face.side < settings.min_face:
        return row | {"status": TOO_SMALL, "reason": f"{face.side} of at least {settings.min_face} pixels"}
    return row | {"status": OK}


def describe_detector() -> dict[str, str]:
    """For the table and the manifest: which detector and which landmark model."""
    return {
        "detector": f"dlib {metadata.version('dlib-bin')} frontal face detector (HOG)",
        "selection": "largest box",
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
