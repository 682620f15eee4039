"""A tar of a set as files: frames, landmarks and masks as DeepfakeBench's loader wants them.

Frames are PNG, for the loader finds landmarks by that suffix: the pixels of a JPEG member as a stock decoder gives
them, or the PNG member itself. Landmarks are our 68 points where the benchmark has 81, float32 [68, 2] in crop pixels;
its loader takes any number as long as all files agree.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datasets_shards.errors import InputError
from datasets_shards.shards.hashedfile import HashedFile
from datasets_shards.shards.tarreader import MASK, MAX_MEMBER_BYTES, group_members, read_members
from datasets_shards.sources.benchmark_names import FRAMES, LANDMARKS, MASKS, file_name, tree_folder
from datasets_shards.verify.imagecheck import MASK_MODES, check_png, check_size

COLUMNS = ["key", "split", "method", "video", "frame", "offset", "size", "width", "height"]
MASK_THRESHOLD = 1
"""The benchmark's own rule (`preprocessing/preprocess.py`): what is brighter belongs to the mask."""


@dataclass(frozen=True)
class TarJob:
    """What a worker needs to write the samples of a tar.

    Args:
        tar: the tar.
        sha256: of the tar, as the manifest lists it.
        rows: its samples, `COLUMNS` of the index, in the tar's order.
        extension: of the image members, "jpg" or "png".
        compression: folder of the benchmark's tree, one of `COMPRESSIONS`.
        out: image root to write in.
    """

    tar: Path
    sha256: str
    rows: pa.Table
    extension: str
    compression: str
    out: Path


@dataclass(frozen=True)
class TarFiles:
    """Which files the samples of a tar gave.

    Args:
        rows: as in `TarJob`.
        landmarks: for each sample, whether it has landmarks.
        masks: for each sample, whether it has a mask.
    """

    rows: pa.Table
    landmarks: list[bool]
    masks: list[bool]


def write_tar(job: TarJob) -> TarFiles:
    """Write the frames, landmarks and masks of a tar's samples.

    Raises:
        InputError: the tar is damaged, isn't what the index lists, or one of its members can't be read.
        OSError: such as a full disk.
    """
    files = TarFiles(job.rows, [], [])
    problem, remedy = None, f"delete {job.tar.parent} and pack it again"
    with job.tar.open("rb") as file:
        hashed = HashedFile(file)
        try:
            for row, members in _samples(hashed, job):
                has_landmarks, has_mask = _write_sample(job, row, members)
                files.landmarks.append(has_landmarks)
                files.masks.append(has_mask)
        except ValueError as error:  # most likely a damaged tar: its digest will tell
            problem = " ".join(str(error).split())
        if hashed.finish() != job.sha256:
            raise InputError(f"{job.tar}: damaged (its SHA-256 isn't the one in the manifest); {remedy}")
    if problem is not None:
        raise InputError(f"{job.tar}: {problem}; {remedy}")
    return files


def _samples(file: HashedFile, job: TarJob) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """Each sample's row and members, by extension. Raises ValueError where the tar isn't what the index lists."""
    rows = iter(job.rows.to_pylist())
    for members in group_members(read_members(file)):
        first, row = next(iter(members.values())), next(rows, None)
        if row is None or first.key != row["key"]:
            expected = f"where the index lists {row['key']}" if row else "which the index doesn't list"
            raise ValueError(f"holds {first.name} {expected}")
        for extension, member in members.items():
            if extension == job.extension and (member.offset, member.size) != (row["offset"], row["size"]):
                raise ValueError(f"{member.name} isn't where the index says")
            if member.size > MAX_MEMBER_BYTES:
                raise ValueError(f"{member.name} has {member.size} bytes, more than any crop needs")
        yield row, {extension: member.content for extension, member in members.items() if member.content is not None}
    if (missing := next(rows, None)) is not None:
        raise ValueError(f"lacks {missing['key']}, which the index lists")


def _write_sample(job: TarJob, row: dict[str, Any], members: dict[str, bytes]) -> tuple[bool, bool]:
    """Write a sample's files; whether it has landmarks, and a mask. Raises ValueError where a member can't be read."""
    key = row["key"]
    if lacking := [extension for extension in (job.extension, "json") if extension not in members]:
        raise ValueError(f"{key} has no member .{lacking[0]}")
    _write(job, row, FRAMES, _frame_png(members[job.extension], job.extension, row))
    landmarks = _landmarks(members["json"], key)
    if landmarks is not None:
        buffer = io.BytesIO()
        np.save(buffer, landmarks)
        _write(job, row, LANDMARKS, buffer.getvalue())
    mask = members.get(MASK)
    if mask is not None:
        _write(job, row, MASKS, _mask_png(mask, row))
    return landmarks is not None, mask is not None


def _frame_png(content: bytes, extension: str, row: dict[str, Any]) -> bytes:
    """The image member as PNG: a JPEG's pixels as stock libjpeg-turbo gives them, OpenCV's decoder too; a PNG as it is.

    Raises ValueError where it isn't such an image, or has another size than the index says; that is looked at first.
    """
    import simplejpeg

    from datasets_shards.jpeg.mozjpeg import encode_png

    name = f"{row['key']}.{extension}"
    if extension == "png":
        _require_png(name, content, row, ("RGB",))
        return content
    height, width, _, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    if problem := check_size((width, height), (row["width"], row["height"])):
        raise ValueError(f"{name}: {problem}")
    return encode_png(simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False))


def _require_png(name: str, content: bytes, row: dict[str, Any], modes: tuple[str, ...]) -> None:
    """Raise ValueError unless a member is a PNG of the crop's size that decodes."""
    try:
        problems = check_png(content, (row["width"], row["height"]), decode=True, modes=modes)
    except ValueError as error:
        problems = [f"no readable PNG ({error})"]
    if problems:
        raise ValueError(f"{name}: {problems[0]}")


def _landmarks(description: bytes, key: str) -> np.ndarray | None:
    """float32 [N, 2] in crop pixels, or None where the sample has none. Raises ValueError for anything else."""
    try:
        content = json.loads(description)
    except RecursionError:
        raise ValueError(f"{key}.json: not readable as JSON") from None
    points = content.get("landmarks") if isinstance(content, dict) else None
    if points is None:
        return None
    try:
        landmarks = np.asarray(points, np.float32)
    except TypeError as error:
        raise ValueError(f"{key}.json: landmarks aren't numbers ({error})") from None
    if landmarks.ndim != 2 or landmarks.shape[1] != 2:
        raise ValueError(f"{key}.json: landmarks have the shape {list(landmarks.shape)}, not [N, 2]")
    return landmarks


def _mask_png(content: bytes, row: dict[str, Any]) -> bytes:
    """The mask as a PNG of 0 and 255, for the loader divides by 255. Raises ValueError where it can't be read."""
    from PIL import Image

    from datasets_shards.jpeg.mozjpeg import encode_png

    _require_png(f"{row['key']}.{MASK}", content, row, MASK_MODES)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        grey = np.asarray(image.convert("L"))
    return encode_png(np.where(grey > MASK_THRESHOLD, 255, 0).astype(np.uint8))


def _write(job: TarJob, row: dict[str, Any], kind: str, content: bytes) -> None:
    folder = job.out / tree_folder(row["method"], job.compression, kind, row["video"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file_name(kind, row["frame"])).write_bytes(content)
