"""One file's work: sample its frames, find the face, cut the crops. Runs in worker processes, without torch."""

import errno
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.crops.align import CropSettings, cut_crop, estimate_alignment, source_region
from datasets_shards.errors import InputError
from datasets_shards.faces.detector import Box, FaceSettings
from datasets_shards.faces.rows import NO_FACE, OK, UNREADABLE, Row, detect_video
from datasets_shards.frames import frame_numbers, read_frames
from datasets_shards.frames.errors import FrameError
from datasets_shards.frames.pixels import describe_error
from datasets_shards.jpeg.dctscale import DCT_SIZE, scale_by_dct
from datasets_shards.jpeg.mozjpeg import DEFAULTS, encode_jpeg
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import naming
from datasets_shards.sources import Video
from fdtrain.predict.inputs import Input, with_kind

FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Recipe:
    """How crops are made of files.

    Args:
        faces: Which frames are sampled, and how faces are found in them.
        crop: How crops are cut.
        are_crops: The files are crops already, and are taken as they are.
        jpeg_quality: MozJPEG quality at which each crop is compressed before it is scored; None for not at all.
        jpeg: How it is compressed.
    """

    faces: FaceSettings
    crop: CropSettings
    are_crops: bool = False
    jpeg_quality: int | None = None
    jpeg: JpegSettings = DEFAULTS


@dataclass(frozen=True)
class Frame:
    """A sampled frame.

    Args:
        number: In its video, from 0.
        error: Why it has no crop; empty where it has one.
        faces: How many were seen in it; None where none was looked for, or the frame can't be read.
        confidence: The detector's score of the face that was taken.
        box: Left, top, right, bottom of that face, frame pixels.
    """

    number: int
    error: str = ""
    faces: int | None = None
    confidence: float | None = None
    box: Box | None = None


@dataclass(frozen=True)
class FileCrops:
    """What a file gave.

    Args:
        input: The file.
        frames: Its sampled frames, ascending.
        error: Why there are none.
        crops: File of the crops, raw uint8 `[N, *shape]`, one of each frame without an error, in their order. On disk,
            since those of all frames of a long video have room nowhere else.
        shape: `[H, W, 3]` of a crop.
    """

    input: Input
    frames: tuple[Frame, ...] = ()
    error: str = ""
    crops: Path | None = None
    shape: tuple[int, int, int] = (0, 0, 3)

    @property
    def scored(self) -> list[Frame]:
        """The frames that have a crop."""
        return [frame for frame in self.frames if not frame.error]

    def read_crops(self) -> Iterator[np.ndarray]:
        """The crops, one in memory at a time, uint8 `[H, W, 3]`."""
        if self.crops is None:
            return
        with self.crops.open("rb") as file:
            for _ in self.scored:
                yield np.frombuffer(bytearray(file.read(int(np.prod(self.shape)))), np.uint8).reshape(self.shape)

    def discard(self) -> None:
        """Remove the crops."""
        if self.crops is not None:
            self.crops.unlink()


def as_video(item: Input) -> Video:
    """The file as the face stage knows it: a video file, or an image that is a video of one frame."""
    path = Path(item.path)
    files = ((0, path.name),) if item.kind == "image" else ()
    # Who it shows and how it was made is what nobody knows yet.
    return Video("", path.stem, "", "", "", path.parent if files else path, item.path, files)


def make_crops(item: Input, recipe: Recipe, folder: Path) -> FileCrops:
    """Find the faces of a file and cut them out; what goes wrong with it is in the result.

    Of an image the largest face is taken; a video's face is followed through the sampled frames, as of training data.

    Args:
        item: The file.
        recipe: How.
        folder: Where the crops go, under a name of their own.
    """
    if item.error:
        return FileCrops(item, error=item.error)
    try:
        item = with_kind(item)
        return (_take if recipe.are_crops else _find_and_cut)(item, recipe, folder)
    except FrameError as error:
        return FileCrops(item, error=error.problem)
    except InputError:  # of the settings or this machine, so of every file
        raise
    except OSError as error:
        if error.errno in FULL:  # no fault of this file
            raise
        return FileCrops(item, error=error.strerror or str(error))
    except MemoryError:
        return FileCrops(item, error="there is too little memory for frames of this size")
    except Exception as error:  # noqa: BLE001 - no single file ends a batch, whatever a library raises
        return FileCrops(item, error=describe_error(error))


def lost_crops(item: Input) -> FileCrops:
    """What stands for a file whose worker process didn't survive it."""
    return FileCrops(item, error="the process that read it was killed, for want of memory or by a defect of a decoder")


def _find_and_cut(item: Input, recipe: Recipe, folder: Path) -> FileCrops:
    video = as_video(item)
    rows = detect_video(video, recipe.faces)
    if rows[0]["status"] == UNREADABLE:
        return FileCrops(item, error=rows[0]["reason"])
    alignments: dict[int, np.ndarray] = {}
    frames = []
    for row in rows:
        error = _error_of(row, video)
        if not error:
            landmarks = np.array(row["landmarks"], np.float32).reshape(-1, 2)  # as pack has them from its table
            size = (row["frame_height"], row["frame_width"])
            try:
                alignments[row["frame"]] = estimate_alignment(landmarks, np.array(row["box"]), recipe.crop, size)
            except ValueError as fault:
                error = str(fault)
        box = tuple(row["box"]) if "box" in row else None
        frames.append(Frame(row["frame"], error, row.get("faces"), row.get("confidence"), box))
    if not alignments:
        return FileCrops(item, tuple(frames))
    regions = {number: source_region(alignment, recipe.crop.size) for number, alignment in alignments.items()}

    def cut() -> Iterator[np.ndarray]:
        for number, image in read_frames(video, list(alignments), regions):
            if isinstance(image, FrameError):
                raise image
            crop = cut_crop(image, alignments[number], recipe.crop)
            yield crop if recipe.crop.dct_scale == DCT_SIZE else scale_by_dct(crop, recipe.crop.dct_scale)

    return _stored(item, frames, cut(), recipe, folder)


def _error_of(row: Row, video: Video) -> str:
    """Why a row of the face stage has no face that is to be cut."""
    if row["status"] == OK:
        return ""
    reason = row.get("reason", "")
    if video.files:  # the path says which image
        return reason.removeprefix(f"{video.files[0][1]}: ") or row["status"]
    return f"{row['status']}: {reason}" if reason else row["status"]


def _take(item: Input, recipe: Recipe, folder: Path) -> FileCrops:
    video = as_video(item)
    numbers = recipe.faces.choice.pick(frame_numbers(video))

    def take() -> Iterator[np.ndarray]:
        for _, image in read_frames(video, numbers):
            if isinstance(image, FrameError):
                raise image
            height, width = image.shape[:2]
            if height != width:
                problem = f"{width}x{height} pixels, and face crops are square; leave --crops away to have faces found"
                raise FrameError(Path(item.path), problem)
            yield image

    return _stored(item, [Frame(number) for number in numbers], take(), recipe, folder)


def _stored(item: Input, frames: list[Frame], crops: Iterator[np.ndarray], recipe: Recipe, folder: Path) -> FileCrops:
    shape: Any = (0, 0, 3)
    path = folder / f"{secrets.token_hex(8)}.crops"
    try:
        with path.open("xb") as file, naming(path):
            for crop in crops:
                if recipe.jpeg_quality is not None:
                    crop = _compressed(crop, recipe.jpeg_quality, recipe.jpeg)
                shape = crop.shape
                file.write(crop.tobytes())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FileCrops(item, tuple(frames), crops=path, shape=shape)


def _compressed(crop: np.ndarray, quality: int, settings: JpegSettings) -> np.ndarray:
    """The crop after the packer's JPEG step, decoded as the loaders do."""
    import simplejpeg

    return simplejpeg.decode_jpeg(encode_jpeg(crop, quality, settings), "RGB", fastdct=False, fastupsample=False)


def describe_failure(file: FileCrops) -> str:
    """Why a file has no score; empty where it has one."""
    if file.error or file.scored:
        return file.error
    if len(file.frames) == 1:
        return file.frames[0].error
    reasons = list(dict.fromkeys(frame.error.partition(":")[0] for frame in file.frames))
    if reasons == [NO_FACE]:
        return f"no face in any of {len(file.frames)} frames"
    return f"no usable face in any of {len(file.frames)} frames ({', '.join(reasons)})"
