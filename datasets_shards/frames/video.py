"""Frames out of a video file, streamed: one decoded frame in memory at a time, whatever the video's length."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

from datasets_shards.frames.errors import FrameError

# Without full chroma interpolation swscale repeats chroma pixels; without the bit-exact paths the pixels, and with them
# the bytes of a shard, depend on the kind of processor.
CONVERSION = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


def count_frames(path: Path) -> int:
    """Number of frames that decoding will show, from the packets alone (nothing is decoded).

    Raises:
        FrameError: not a video, cut short, or without a frame.
    """
    with _open(path) as (container, stream):
        shown = packets = 0
        for packet in container.demux(stream):
            if packet.size:
                packets += 1
                shown += not packet.is_discard  # an edit list may hide frames
        declared = stream.frames
    if packets < declared:
        raise FrameError(path, f"cut short: {packets} of {declared} frames are there")
    if shown == 0:
        raise FrameError(path, "holds no frame")
    return shown


def read_frames(path: Path, numbers: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode the frames `numbers` (counted from 0 in the order shown) as (number, RGB uint8 [H, W, 3]).

    The rotation that the container asks for is applied, so height and width are those a player would show. Decoding
    uses one thread: the pool in `datasets_shards.pool` runs one video per core.

    Raises:
        FrameError: the file can't be opened or decoded, or ends before the last frame asked for.
    """
    missing = set(numbers)
    with _open(path) as (container, stream):
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number not in missing:
                continue
            if frame.is_corrupt:
                raise FrameError(path, f"frame {number} is damaged")
            missing.remove(number)
            image = frame.to_ndarray(format="rgb24", interpolation=CONVERSION)
            # FFmpeg gives the display rotation counter-clockwise in degrees, and so turns np.rot90
            yield number, np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
            if not missing:
                return
    if missing:
        raise FrameError(path, f"ends before frame {min(missing)}")


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise FrameError(path, "holds no video stream")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise FrameError(path, f"can't be decoded ({error.strerror})") from None
