"""Frames out of a video file, streamed: one decoded frame in memory at a time, whatever the video's length."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import Interpolation

from datasets_shards.frames.content import VideoContent
from datasets_shards.frames.errors import FrameError, check_file
from datasets_shards.frames.geometry import as_shown, is_turned, square_size
from datasets_shards.frames.pixels import MAX_PIXELS, describe_error

# Without full chroma interpolation swscale repeats chroma pixels; without the bit-exact paths the pixels, and with them
# the bytes of a shard, depend on the kind of processor.
CONVERSION = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT

Region = tuple[int, int, int, int]
PLANAR = ("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p", "yuv420p10le", "yuv444p10le")
CHROMA_REACH = 16
# Containers alone, by the names of FFmpeg's demuxers: lists of other files (concat, HLS, DASH, image sequences) aren't.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,m4v,mxf,dv,ivf"
OPENING = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, "max_pixels": str(MAX_PIXELS)}
MAX_REORDERED = 16
"""Frames that may be decoded before one that is shown earlier; the most that H.264 and HEVC allow."""
TIME_BASE = Fraction(1, 1000)  # of no account: the filter wants one


@dataclass(frozen=True)
class Packets:
    """What a video's packets say, without decoding.

    Args:
        count: number of frames that decoding will show.
        times: presentation time of each, in the order of decoding; empty where the times, or the codec, don't allow to
            go by them.
    """

    count: int
    times: list[int]


def count_frames(path: Path) -> int:
    """Number of frames that decoding will show; raises as `read_packets`."""
    return read_packets(path).count


def read_packets(path: Path, content: VideoContent | None = None) -> Packets:
    """Demux a video once.

    Args:
        path: the video file.
        content: of the file, where it was read already.

    Raises:
        FrameError: not a video, cut short, or without a frame.
    """
    with _open(path, content) as (container, stream):
        packets = 0
        times = []
        for packet in container.demux(stream):
            if packet.size:
                packets += 1
                if not packet.is_discard:  # an edit list may hide frames
                    times.append(packet.pts)
        declared, is_avi = stream.frames, container.format.name == "avi"
        by_time = stream.codec_context.name in ("h264", "hevc")
    # An AVI's header also counts the frames that were dropped while recording, of which nothing is stored.
    if packets < declared and (not is_avi or path.stat().st_size < _riff_size(path)):
        raise FrameError(path, f"cut short: {packets} of {declared} frames are there")
    if not times:
        raise FrameError(path, "holds no frame")
    return Packets(len(times), times if by_time and _tell_apart(times) else [])


def read_frames(
    path: Path,
    numbers: Collection[int],
    regions: Mapping[int, Region] | None = None,
    times: Sequence[int] | None = None,
    content: VideoContent | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode the frames `numbers` (counted from 0 in the order shown) as (number, RGB uint8 [H, W, 3]).

    Pixels are made square, and the frame is turned and mirrored as the container asks for: height and width are those
    that a player shows (`datasets_shards.frames.geometry`). Decoding uses one thread: the pool in
    `datasets_shards.pool` runs one video per core.

    Args:
        path: the video file.
        numbers: which frames.
        regions: of frames that are needed in part only: left, top, right, bottom, which may reach beyond the frame.
            Inside, the pixels are those of the whole frame's conversion, which takes three times as long; outside they
            may be black.
        times: of its `Packets`, where they are known; else the file is demuxed for them first.
        content: of the file, where it was read already.

    Raises:
        FrameError: the file can't be opened or decoded, or ends before the last frame asked for.
    """
    missing = set(numbers)
    wanted = len(missing)
    if times is None:
        times = _times_of(path, content)
    number_of = {time: number for number, time in enumerate(sorted(times))}
    by_time = {time: number_of[time] for time in times}
    for decode in (_decode_needed, _decode_all) if times else (_decode_all,):
        with _open(path, content) as (container, stream):
            stream.codec_context.thread_count = 1
            for number, frame, damaged in _judged(decode(container, stream, missing, by_time), missing, by_time):
                if damaged:
                    raise FrameError(path, f"frame {number} is damaged, or follows from one that is")
                missing.remove(number)
                yield (
                    number,
                    _picture(path, frame, stream.sample_aspect_ratio, regions.get(number) if regions else None),
                )
                if not missing:
                    return
        if len(missing) < wanted:  # the times were right, and what is lacking can't be decoded
            break
    if missing:
        raise FrameError(path, f"has no frame {min(missing)} that can be decoded")


@dataclass
class _Held:
    """A frame that waits until all that was decoded before it has been seen."""

    number: int
    frame: Any
    until: int
    damaged: bool


def _judged(
    decoded: Iterator[tuple[int, Any]], missing: set[int], times: dict[int, int]
) -> Iterator[tuple[int, Any, bool]]:
    """The wanted frames, each with whether it is damaged or may be predicted from one that is.

    FFmpeg flags nothing but the frame whose own bits are damaged. What is shown after it may follow from it up to the
    next key frame. So may what is shown before it and was decoded after it; therefore a frame is held until everything
    that was decoded before it has been shown.
    """
    until = _shown_last(times)
    held: list[_Held] = []
    damaged = False
    for number, frame in decoded:
        if frame.key_frame and frame.pict_type == PictureType.I:
            damaged = False
        if frame.is_corrupt:
            damaged = True
            for other in held:
                other.damaged |= other.until >= number
        is_b = frame.pict_type == PictureType.B
        if not until and not is_b:  # nothing is known of the order of decoding, but that B frames follow the next other
            for other in held:
                other.until = number
        if number in missing:
            last = until.get(number, number + MAX_REORDERED if is_b else number)
            held.append(_Held(number, frame, last, damaged))
        while held and held[0].until <= number:
            done = held.pop(0)
            yield done.number, done.frame, done.damaged
    for done in held:
        yield done.number, done.frame, done.damaged


def _shown_last(times: dict[int, int]) -> dict[int, int]:
    """By frame number, which of the frames that are decoded no later is shown last."""
    last = -1
    until = {}
    for number in times.values():
        last = max(last, number)
        until[number] = last
    return until


def _decode_all(container: Any, stream: Any, _missing: set[int], _times: dict[int, int]) -> Iterator[tuple[int, Any]]:
    return enumerate(container.decode(stream))


def _decode_needed(container: Any, stream: Any, missing: set[int], times: dict[int, int]) -> Iterator[tuple[int, Any]]:
    """Without frames that neither are wanted nor serve others for prediction: a third of the time in FF++'s videos."""
    for packet in container.demux(stream):
        unneeded = packet.size and times.get(packet.pts) not in missing
        stream.codec_context.skip_frame = "NONREF" if unneeded else "DEFAULT"
        for frame in packet.decode():
            yield times.get(frame.pts, -1), frame


def _times_of(path: Path, content: VideoContent | None) -> list[int]:
    """`Packets.times`, of a video that is cut short too."""
    with _open(path, content) as (container, stream):
        if stream.codec_context.name not in ("h264", "hevc"):
            return []
        times = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
    return times if _tell_apart(times) else []


def _tell_apart(times: list[int | None]) -> bool:
    return None not in times and len(set(times)) == len(times)


def _picture(path: Path, frame: Any, pixel: Fraction | None, region: Region | None) -> np.ndarray:
    """RGB uint8 [H, W, 3] as a player shows it; `region` is used where that is how the frame is stored."""
    try:
        width, height = square_size(frame.width, frame.height, pixel)
    except ValueError as error:
        raise FrameError(path, str(error)) from None
    if (width, height) != (frame.width, frame.height):
        image = frame.to_ndarray(width=width, height=height, format="rgb24", interpolation=CONVERSION)
    else:
        image = _convert(frame, None if is_turned(frame) else region)
    return np.ascontiguousarray(as_shown(image, frame))


def _convert(frame: Any, region: Region | None) -> np.ndarray:
    """RGB uint8 [H, W, 3]; what is outside of `region`, where there is one, is black."""
    # Where halves don't come out even, swscale stretches the chroma over the whole width, not pixel by pixel.
    if region is None or frame.format.name not in PLANAR or frame.width % 2 or frame.height % 2:
        return frame.to_ndarray(format="rgb24", interpolation=CONVERSION)
    # What of it is in the frame, or the frame's nearest edge; whole chroma pixels, and what the chroma kernel reaches.
    left, right = _extend(region[0], region[2], frame.width)
    top, bottom = _extend(region[1], region[3], frame.height)
    image = np.zeros((frame.height, frame.width, 3), np.uint8)
    part = _cut(frame, left, top, right, bottom)
    image[top:bottom, left:right] = part.to_ndarray(format="rgb24", interpolation=CONVERSION)
    return image


def _extend(start: int, stop: int, length: int) -> tuple[int, int]:
    start = min(max(start, 0), length - 1)
    stop = min(max(stop, start + 1), length)
    return max(0, start - CHROMA_REACH) // 2 * 2, min(length, (stop + CHROMA_REACH + 1) // 2 * 2)


def _cut(frame: Any, left: int, top: int, right: int, bottom: int) -> Any:
    """A part of a frame by FFmpeg's crop filter: it copies no pixel and keeps where chroma lies, as PyAV can't."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=TIME_BASE),
        graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1"),
        graph.add("buffersink"),
    ).configure()
    graph.vpush(frame)
    return graph.vpull()


def _riff_size(path: Path) -> int:
    """Bytes that a RIFF file has by the sizes in it: one part, or several, as AVI has them beyond a gigabyte."""
    end = 0
    with path.open("rb") as file:
        while file.seek(end) == end and (head := file.read(8))[:4] == b"RIFF" and len(head) == 8:
            end += 8 + int.from_bytes(head[4:], "little")
    return end


@contextmanager
def _open(path: Path, content: VideoContent | None = None) -> Iterator[tuple[Any, Any]]:
    """A video file's container and first video stream; whatever FFmpeg or PyAV raises meanwhile is about this file."""
    check_file(path)
    try:
        with _container(path, content) as container:
            if not container.streams.video:
                raise FrameError(path, "holds no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise FrameError(path, "no decoder for its video stream")
            _check_size(path, stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change on the way
            yield container, stream
    except FrameError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises is about this file
        raise FrameError(path, f"can't be decoded ({describe_error(error)})") from None


def _container(path: Path, content: VideoContent | None) -> Any:
    # The prefix makes it a local name whatever colons are in it. Tags may be of any encoding, and nobody reads them.
    try:
        if content is not None:
            content.seek(0)
        return av.open(content or f"file:{path}", "r", options=OPENING, metadata_errors="replace")
    except av.ArgumentError:  # so does FFmpeg refuse a format that isn't among `CONTAINERS`
        raise FrameError(path, "is no video (containers such as MP4 and AVI are read, no lists of files)") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if not width * height:  # FFmpeg forgets a size that is beyond its own limit, or `MAX_PIXELS`
        raise FrameError(path, f"its frames have no known size, or more than the {MAX_PIXELS} pixels that are read")
    if width * height > MAX_PIXELS:
        raise FrameError(path, f"{width}x{height} pixels, more than the {MAX_PIXELS} that are read")
