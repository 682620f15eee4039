"""One video's work while packing: decode once, cut each crop once, encode it at every quality."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.crops.align import (
    AS_THEY_ARE,
    CropSettings,
    apply_alignment,
    cut_crop,
    estimate_alignment,
    source_region,
)
from datasets_shards.errors import InputError
from datasets_shards.faces.rows import identity_of
from datasets_shards.faces.table import FaceRows, read_faces
from datasets_shards.frames import read_frames
from datasets_shards.frames.content import load_video
from datasets_shards.frames.errors import FrameError
from datasets_shards.frames.masks import MaskReader, resize_mask
from datasets_shards.jpeg.dctscale import DCT_SIZE, scale_by_dct, scale_points
from datasets_shards.jpeg.mozjpeg import encode, encode_png
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import Manifest, Quality, sample_key
from datasets_shards.sources import Video


@dataclass(frozen=True)
class VideoJob:
    """What a worker needs to make the samples of a video.

    Args:
        video: the video.
        split: its split.
        frames: frame numbers, ascending.
        faces: the table of faces.
        first_row: of the video in that table.
        rows: how many it has there; every number in `frames` is in one of them.
        sha256: of the video, by that table.
        crop: how their images are made.
        jpeg: how they are compressed.
        masks: whether manipulation masks go along.
        qualities: what to encode each crop at.
    """

    video: Video
    split: str
    frames: list[int]
    faces: Path
    first_row: int
    rows: int
    sha256: str
    crop: CropSettings
    jpeg: JpegSettings
    masks: bool
    qualities: tuple[Quality, ...]


@dataclass(frozen=True)
class Sample:
    """One crop at every quality.

    Args:
        key: the sample's key.
        members: at each quality the content of each member, by extension: the image, `cls`, `json` and perhaps
            `mask.png`.
    """

    key: str
    members: dict[Quality, dict[str, bytes]]


def make_samples(job: VideoJob, tell: Callable[[str], None] = lambda note: None) -> Iterator[Sample]:
    """The samples of a video, by frame.

    Args:
        job: what to make.
        tell: takes a line for people about masks that can't be used.

    Raises:
        FrameError: the video can no longer be read as the face stage read it.
        InputError: it has changed since.
    """
    if job.video.files:
        content, sha256 = None, identity_of(job.video)
    else:
        content, _, sha256 = load_video(job.video.path)
    if sha256 != job.sha256:
        raise InputError(f"{job.video.path}: has changed since its faces were found; make the table of faces again")
    rows = read_faces(job.faces, job.first_row, job.rows)
    row_of = {int(number): row for row, number in enumerate(rows.frames)}
    alignments: dict[int, np.ndarray] = {}
    if job.crop.align != AS_THEY_ARE:
        for number in job.frames:
            row = row_of[number]
            size = (int(rows.sizes[row][0]), int(rows.sizes[row][1]))
            alignments[number] = estimate_alignment(rows.landmarks[row], rows.boxes[row], job.crop, size)
    regions = {number: source_region(alignment, job.crop.size) for number, alignment in alignments.items()}
    masks = MaskReader(job.video, job.frames) if job.masks else None
    for number, image in read_frames(job.video, job.frames, regions, rows.times, content):
        if isinstance(image, FrameError):
            raise image
        mask = masks.at(number) if masks is not None else None
        crop, mask, facts = _cut(job, rows, row_of[number], alignments.get(number), image, mask)
        if job.crop.dct_scale != DCT_SIZE:
            crop = scale_by_dct(crop, job.crop.dct_scale)
            mask = None if mask is None else resize_mask(mask, crop.shape[0])
            if facts["landmarks"] is not None:
                facts["landmarks"] = scale_points(facts["landmarks"], job.crop.dct_scale)
        yield _encode(job, number, crop, mask, facts)
    if masks is not None and (note := masks.note()):
        tell(f"{job.video.relative}: {note}")


def _cut(
    job: VideoJob,
    rows: FaceRows,
    row: int,
    alignment: np.ndarray | None,
    image: np.ndarray,
    mask: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Crop, mask and what the description says of them: box in the frame, landmarks in the crop."""
    if mask is not None and mask.shape != image.shape[:2]:
        mask = resize_mask(mask, *image.shape[:2])
    if image.shape[:2] != tuple(rows.sizes[row]):
        raise InputError(
            f"{job.video.path}: frame {rows.frames[row]} is {image.shape[1]}x{image.shape[0]} pixels, which isn't what "
            "the face stage saw; make the table of faces again"
        )
    if alignment is None:
        return image, mask, {"box": None, "landmarks": rows.landmarks_of(row)}
    facts = {"box": rows.boxes[row].tolist(), "landmarks": apply_alignment(alignment, rows.landmarks[row])}
    if mask is not None:
        mask = cut_crop(mask, alignment, job.crop)
    return cut_crop(image, alignment, job.crop), mask, facts


def _encode(job: VideoJob, number: int, crop: np.ndarray, mask: np.ndarray | None, facts: dict[str, Any]) -> Sample:
    video = job.video
    landmarks = facts["landmarks"]
    description = {
        "label": video.label,
        "method": video.method,
        "video": video.name,
        "target": video.target,
        "source": video.source,
        "frame": number,
        "split": job.split,
        "box": facts["box"],
        "landmarks": None if landmarks is None else np.asarray(landmarks, np.float64).round(2).tolist(),
    }
    common = {"cls": b"%d" % video.label}
    extra = {} if mask is None else {"mask.png": encode_png(mask)}
    return Sample(
        key=sample_key(video.method, video.name, number),
        members={
            quality: {Manifest.image_extension(quality): encode(crop, quality, job.jpeg)}
            | common
            | {"json": json.dumps(description | {"quality": quality}, separators=(",", ":")).encode()}
            | extra
            for quality in job.qualities
        },
    )
