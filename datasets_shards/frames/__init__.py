"""Frames out of what a source holds: video files, and folders of image files."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from datasets_shards.frames.content import VideoContent
from datasets_shards.frames.errors import FrameError
from datasets_shards.sources.video import Video


def frame_numbers(video: Video) -> list[int]:
    """The numbers of all of a video's frames, ascending; nothing is decoded.

    Raises:
        FrameError: the video file isn't one, is cut short, or holds no frame.
    """
    if video.files:
        return [number for number, _ in video.files]
    from datasets_shards.frames.video import count_frames

    return list(range(count_frames(video.path)))


def read_frames(
    video: Video,
    numbers: Collection[int],
    regions: Mapping[int, tuple[int, int, int, int]] | None = None,
    times: Sequence[int] | None = None,
    content: VideoContent | None = None,
) -> Iterator[tuple[int, np.ndarray | FrameError]]:
    """Decode frames one at a time, in their order, as (number, RGB uint8 [H, W, 3]).

    In a folder of images every file stands for itself: one that can't be read comes as the error in place of its
    pixels, and the others follow.

    Args:
        video: the video.
        numbers: which frames.
        regions: by frame number, what of it is needed: left, top, right, bottom in pixels. The rest may be black.
        times: of a video file's packets, where they are known.
        content: of a video file, where it was read already.

    Raises:
        FrameError: a video file can't be opened or decoded, or ends before the last frame asked for.
    """
    if not video.files:
        from datasets_shards.frames import video as video_file

        yield from video_file.read_frames(video.path, numbers, regions, times, content)
        return
    from datasets_shards.frames.image import read_image

    wanted = set(numbers)
    for number, name in video.files:
        if number in wanted:
            try:
                yield number, read_image(video.path / name)
            except FrameError as error:
                yield number, error
