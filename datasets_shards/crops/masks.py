"""Manipulation masks: which pixels of a frame a method changed.

FF++ has them as videos, `<method>/masks/videos/004_982.mp4`, DeepfakeBench as images of its crops,
`<method>/<compression>/masks/<video>/<frame>.png`. They go through the same alignment as the crop. Their values stay as
they are, 0 to 255: FF++'s are compressed videos, and a threshold is the reader's choice.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets_shards.frames.errors import FrameError
from datasets_shards.frames.image import read_image
from datasets_shards.sources import Video
from datasets_shards.sources.benchmark_names import MASKS, file_name


class MaskReader:
    """The masks of a video's frames, asked for in ascending order.

    A frame has none where the video has none (a real one), or where the mask's video ends before it or its folder lacks
    the file.
    """

    def __init__(self, video: Video, numbers: list[int]) -> None:
        self._folder = video.mask if video.mask is not None and video.mask.is_dir() else None
        self._frames: Iterator[tuple[int, np.ndarray]] = iter(())
        if video.mask is not None and self._folder is None:
            self._frames = _read_video(video.mask, numbers)
        self._next = next(self._frames, None)

    def at(self, number: int) -> np.ndarray | None:
        """The mask of a frame, uint8 [H, W], or None.

        Raises:
            FrameError: it is there and can't be decoded.
        """
        if self._folder is not None:
            path = self._folder / file_name(MASKS, number)
            return read_image(path).max(axis=2) if path.exists() else None
        if self._next is None or self._next[0] != number:
            return None
        mask = self._next[1].max(axis=2)  # some are coloured: whatever isn't black was changed
        self._next = next(self._frames, None)
        return mask


def _read_video(path: Path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    from datasets_shards.frames.video import count_frames, read_frames

    total = count_frames(path)
    there = [number for number in numbers if number < total]
    return read_frames(path, there) if there else iter(())


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
