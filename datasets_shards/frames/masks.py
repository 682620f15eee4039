"""Manipulation masks: which pixels of a frame a method changed.

FF++ has them as videos, `<method>/masks/videos/004_982.mp4`, DeepfakeBench as images of its crops,
`<method>/<compression>/masks/<video>/<frame>.png`. They go through the same alignment as the crop. Their values stay as
they are, 0 to 255: FF++'s are compressed videos, and a threshold is the reader's choice.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.frames.errors import FrameError
from datasets_shards.frames.image import read_image
from datasets_shards.sources import Video
from datasets_shards.sources.listing import entries

FORGED = 64
"""What counts as changed where it must be decided: far above the noise of a compressed black."""


class MaskReader:
    """The masks of a video's frames, asked for in ascending order.

    A frame has none where the video has none (a real one), where the mask's video ends before it or its folder lacks
    the file, and where the mask can't be decoded; `note` then says so.
    """

    def __init__(self, video: Video, numbers: list[int]) -> None:
        self._path = video.mask
        self._files: dict[int, str] | None = None
        self._frames: Iterator[tuple[int, np.ndarray]] = iter(())
        self._next: tuple[int, np.ndarray] | None = None
        self._problem = ""
        self._lacking = 0
        if video.mask is not None and video.mask.is_dir():
            self._files = mask_files(video.mask)
        elif video.mask is not None:
            self._frames = _read_video(video.mask, numbers)

    def at(self, number: int) -> np.ndarray | None:
        """The mask of a frame, uint8 [H, W], or None."""
        if self._path is None:
            return None
        try:
            mask = self._read(number)
        except FrameError as error:
            self._problem = self._problem or str(error)
            mask = None
        self._lacking += mask is None
        return mask

    def note(self) -> str:
        """What people should know: how many frames have no mask though their video has one."""
        if not self._lacking:
            return ""
        return f"{self._lacking} frames have no mask ({self._problem or f'{self._path} has none of them'})"

    def _read(self, number: int) -> np.ndarray | None:
        if self._path is not None and self._files is not None:
            name = self._files.get(number)
            return None if name is None else read_image(self._path / name).max(axis=2)
        if self._next is None:
            self._next = next(self._frames, None)
        if self._next is None or self._next[0] != number:
            return None
        mask = self._next[1].max(axis=2)  # some are coloured: whatever isn't black was changed
        self._next = None
        return mask


def mask_files(folder: Path) -> dict[int, str]:
    """Name of each frame's mask in a folder, by frame number, whatever the number of its digits."""
    names = (entry.name for entry in entries(folder))
    return {int(Path(name).stem): name for name in names if name.endswith(".png") and Path(name).stem.isdigit()}


def _read_video(path: Path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    from datasets_shards.frames.video import read_frames, read_packets

    packets = read_packets(path)
    there = [number for number in numbers if number < packets.count]
    if there:
        yield from read_frames(path, there, times=packets.times)


def describe_masks(videos: list[Video]) -> dict[str, Any]:
    """For the manifest: how many of the videos have masks, and the digest of what lies there, by names and sizes."""
    lines = []
    for video in videos:
        if files := _files_of(video):
            lines.append(f"{video.relative}\t{len(files)}\t{sum(path.stat().st_size for path in files)}\n")
        elif video.mask is not None:
            lines.append(f"{video.relative}\t0\t0\n")
    return {"videos": len(lines), "digest": _digest_of(lines)}


def mask_times(videos: list[Video]) -> str:
    """Digest of when each mask was last changed: tells masks that were made anew with the size of before."""
    return _digest_of([f"{path}\t{path.stat().st_mtime_ns}\n" for video in videos for path in _files_of(video)])


def _files_of(video: Video) -> list[Path]:
    if video.mask is None or not video.mask.is_dir():
        return [] if video.mask is None else [video.mask]
    return [video.mask / name for name in mask_files(video.mask).values()]


def _digest_of(lines: list[str]) -> str:
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def check_mask(video: Video) -> str | None:
    """What is wrong with a video's mask, found without decoding it, or None."""
    if video.mask is None or video.mask.is_dir():
        return None
    from datasets_shards.frames.video import count_frames

    try:
        count_frames(video.mask)
    except FrameError as error:
        return error.problem
    return None


def resize_mask(mask: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """Another size: linear interpolation, mean of what falls together. uint8 [H, W] -> uint8 [height, width]."""
    import pyvips

    width = height if width is None else width
    if mask.shape == (height, width):
        return mask
    image = pyvips.Image.new_from_array(np.ascontiguousarray(mask))
    resized = image.resize(width / image.width, vscale=height / image.height, kernel="linear")
    if (resized.height, resized.width) != (height, width):  # resize rounds
        resized = resized.embed(0, 0, width, height, extend="copy")
    return resized.numpy().reshape(height, width)
