"""One video's work while packing: decode once, cut each crop once, encode it at every quality."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets_shards.crops.align import CropSettings, apply_alignment, cut_crop, estimate_alignment
from datasets_shards.frames import read_frames
from datasets_shards.frames.errors import FrameError
from datasets_shards.jpeg.mozjpeg import encode
from datasets_shards.schema import Quality, sample_key
from datasets_shards.sources import Video


@dataclass(frozen=True)
class VideoJob:
    """What a worker needs to make the samples of a video.

    Args:
        video: the video.
        split: its split.
        frames: frame numbers, ascending.
        boxes: the face's box in each frame, int32 [N, 4].
        landmarks: the face's landmarks in each frame, float32 [N, 68, 2], frame pixels.
        crop: how crops are cut.
        qualities: what to encode each crop at.
    """

    video: Video
    split: str
    frames: list[int]
    boxes: np.ndarray
    landmarks: np.ndarray
    crop: CropSettings
    qualities: tuple[Quality, ...]


@dataclass(frozen=True)
class Sample:
    """One crop at every quality.

    Args:
        key: the sample's key.
        label: 0 real, 1 fake.
        images: the encoded crop at each quality.
        descriptions: the `.json` member at each quality.
    """

    key: str
    label: int
    images: dict[Quality, bytes]
    descriptions: dict[Quality, bytes]


def make_samples(job: VideoJob) -> list[Sample]:
    """The samples of a video, by frame. Raises FrameError where it can no longer be read as the face stage read it."""
    samples = []
    for i, (number, image) in enumerate(read_frames(job.video, job.frames)):
        if isinstance(image, FrameError):
            raise image
        alignment = estimate_alignment(job.landmarks[i], job.crop)
        crop = cut_crop(image, alignment, job.crop.size)
        facts = _describe(job, i, number, apply_alignment(alignment, job.landmarks[i]))
        samples.append(
            Sample(
                key=sample_key(job.video.method, job.video.name, number),
                label=job.video.label,
                images={quality: encode(crop, quality) for quality in job.qualities},
                descriptions={
                    quality: json.dumps(facts | {"quality": quality}, separators=(",", ":")).encode()
                    for quality in job.qualities
                },
            )
        )
    return samples


def _describe(job: VideoJob, i: int, number: int, landmarks: np.ndarray) -> dict[str, Any]:
    video = job.video
    return {
        "label": video.label,
        "method": video.method,
        "video": video.name,
        "target": video.target,
        "source": video.source,
        "frame": number,
        "split": job.split,
        "box": job.boxes[i].tolist(),
        "landmarks": landmarks.round(2).tolist(),
    }
