"""Frames: which ones, in what orientation, and what happens to broken files."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_shards.frames.choice import evenly_spaced
from datasets_shards.frames.errors import FrameError
from datasets_shards.frames.video import count_frames, read_frames
from tests.unit.conftest import write_video


@given(st.integers(1, 5000), st.integers(1, 400))
def test_frames_cover_the_whole_video_evenly(total: int, count: int) -> None:
    numbers = evenly_spaced(total, count)
    assert len(numbers) == len(set(numbers)) == min(total, count)
    assert numbers[0] >= 0
    assert numbers[-1] < total
    if count < total:
        assert numbers[0] + numbers[-1] == pytest.approx(total - 1, abs=1)  # as far from the end as from the start
        assert np.ptp(np.diff(numbers)) <= 1 if count > 1 else True


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames; the grey of frame n is 40 + 6 n, and the top left quarter is white."""
    frames = [np.full((64, 96, 3), 40 + 6 * n, np.uint8) for n in range(30)]
    for frame in frames:
        frame[:32, :48] = 255
    return write_video(tmp_path_factory.mktemp("video") / "ramp.mp4", frames)


def test_frame_numbers(ramp: Path) -> None:
    assert count_frames(ramp) == 30
    for number, image in read_frames(ramp, [0, 7, 8, 29]):
        assert image.shape == (64, 96, 3)
        assert image.dtype == np.uint8
        assert image[60, 90].mean() == pytest.approx(40 + 6 * number, abs=2)


@pytest.mark.parametrize(
    ("matrix", "white"), [((0, 1, -1, 0), (0, -1)), ((-1, 0, 0, -1), (-1, -1)), ((0, -1, 1, 0), (-1, 0))]
)
def test_rotation_is_honoured(ramp: Path, tmp_path: Path, matrix: tuple[int, ...], white: tuple[int, int]) -> None:
    """A phone's display matrix in the track header: a quarter clockwise, a half, a quarter counter-clockwise."""
    data = bytearray(ramp.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # after the header's fixed fields, version 0
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)

    _, image = next(read_frames(path, [3]))
    assert image.shape == ((64, 96, 3) if matrix[1] == 0 else (96, 64, 3))
    corners = {(y, x): image[y, x].mean() for y in (0, -1) for x in (0, -1)}
    assert max(corners, key=lambda corner: corners[corner]) == white


def test_broken_files_are_named(ramp: Path, tmp_path: Path) -> None:
    data = ramp.read_bytes()
    for name, content, message in (
        ("empty.mp4", b"", "can't be decoded"),
        ("text.mp4", b"no video at all" * 100, "can't be decoded"),
        ("cut.mp4", data[: len(data) // 2], "can't be decoded"),  # the moov box is at the end
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(FrameError, match=f"{name}: {message}"):
            count_frames(path)


def test_a_video_cut_short_is_no_shorter_video(ramp: Path, tmp_path: Path) -> None:
    import av

    path = tmp_path / "fast.mp4"
    with av.open(str(ramp)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(FrameError, match=r"fast\.mp4: cut short: \d+ of 30 frames"):
        count_frames(path)


def test_a_file_without_video(tmp_path: Path) -> None:
    import wave

    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    with pytest.raises(FrameError, match="holds no video stream"):
        count_frames(path)


def test_a_frame_beyond_the_end(ramp: Path) -> None:
    with pytest.raises(FrameError, match="ends before frame 30"):
        list(read_frames(ramp, [29, 30]))
