"""Frames: which ones, in what orientation, and what happens to broken files."""

import struct
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_shards.frames.choice import evenly_spaced
from datasets_shards.frames.errors import FrameError
from datasets_shards.frames.geometry import square_size
from datasets_shards.frames.video import PLANAR, count_frames, read_frames
from tests.unit.conftest import FACE, write_video


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


def as_shown_by(matrix: tuple[int, int, int, int], frame: np.ndarray) -> np.ndarray:
    """Every pixel of a frame moved by the matrix (a, b, c, d): x, y -> a x + c y, b x + d y."""
    a, b, c, d = matrix
    y, x = np.indices(frame.shape[:2])
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    shown = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    shown[to_y, to_x] = frame
    return shown


@pytest.mark.parametrize(
    "matrix",
    [
        (a, b, c, d)
        for a, b, c, d in product((-1, 0, 1), repeat=4)
        if abs(a * d - b * c) == 1 and not (a * b or a * c or b * d)
    ],
)
def test_turns_and_flips_are_honoured(ramp: Path, tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    """All eight display matrices that a track header may have."""
    data = bytearray(ramp.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # after the header's fixed fields, version 0
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)

    _, stored = next(read_frames(ramp, [3]))
    expected = as_shown_by(matrix, stored)
    assert np.array_equal(next(read_frames(path, [3]))[1], expected)
    _, part = next(read_frames(path, [3], {3: (0, 0, 10, 10)}))  # a region is of the frame as it is shown
    assert np.array_equal(part[:10, :10], expected[:10, :10])


@pytest.mark.parametrize(
    ("pixel", "size"), [("16/9", (72, 128)), ("3/4", (96, 72)), ("427/426", (72, 72)), ("0", (72, 72))]
)
def test_pixels_become_square(tmp_path: Path, pixel: str, size: tuple[int, int]) -> None:
    import av

    image = np.ascontiguousarray(FACE)
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 72, 72, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(pixel)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(72, 72)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    _, shown = next(read_frames(path, [0], {0: (0, 0, 10, 10)}))
    assert shown.shape == (*size, 3)
    if size != (72, 72):
        expected = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(*size[::-1]).to_ndarray(format="rgb24")
        assert np.abs(shown - expected.astype(float)).mean() < 6


def test_pixels_of_no_camera(tmp_path: Path) -> None:
    """A damaged header must not ask for a frame of a thousand times the size."""
    with pytest.raises(ValueError, match="pixels of 1000:1"):
        square_size(640, 480, Fraction(1000))


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


def test_frames_that_an_avi_dropped(tmp_path: Path) -> None:
    """Its header counts them, though nothing of them is stored; a file that was really cut is refused all the same."""
    import av

    path, cut = tmp_path / "dropped.avi", tmp_path / "cut.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25), options={"b": "2000000"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, pixels in enumerate(greys(12)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number + 4 * (number > 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 16
    assert count_frames(path) == 12
    assert [number for number, _ in read_frames(path, range(12))] == list(range(12))
    cut.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(FrameError, match=r"cut\.avi: cut short: \d+ of 16 frames are there"):
        count_frames(cut)


def test_a_file_without_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(FrameError, match="holds no video stream"):
        count_frames(path)


def test_a_tag_of_any_encoding_ends_nothing(ramp: Path, tmp_path: Path) -> None:
    import av

    path = tmp_path / "latin1.mkv"
    with av.open(str(ramp)) as source, av.open(str(path), "w") as target:
        target.metadata["title"] = "Jurgen"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"Jurgen", b"J\xfcrgen"))
    assert count_frames(path) == 30


def test_a_name_is_that_of_a_local_file(ramp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30 clip.mp4", "http:x.mp4", "%03d.mp4"):
        Path(name).write_bytes(ramp.read_bytes())
        assert count_frames(Path(name)) == 30


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile ramp.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nramp.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "\x89PNG\r\n\x1a\n",
    ],
)
def test_no_list_of_other_files_is_followed(ramp: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "ramp.mp4").write_bytes(ramp.read_bytes())
    (tmp_path / "list.mp4").write_text(content, encoding="latin-1")
    with pytest.raises(FrameError, match=r"list\.mp4: (is no video|can't be decoded)"):
        count_frames(tmp_path / "list.mp4")


@pytest.mark.parametrize(("side", "message"), [(8192, ""), (8256, r"more than the \d+( pixels)? that are read")])
def test_large_frames_are_refused_before_they_are_decoded(tmp_path: Path, side: int, message: str) -> None:
    """A small file's header is made to declare them."""
    import av

    path = tmp_path / "large.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    place = data.index(b"strf") + 12  # width and height of the BITMAPINFOHEADER
    struct.pack_into("<ii", data, place, side, side)
    path.write_bytes(data)
    if not message:
        assert count_frames(path) == 1
        return
    with pytest.raises(FrameError, match=message):
        list(read_frames(path, [0]))


def test_a_frame_beyond_the_end(ramp: Path) -> None:
    with pytest.raises(FrameError, match="has no frame 30 that can be decoded"):
        list(read_frames(ramp, [29, 30]))


def greys(count: int) -> list[np.ndarray]:
    """Frame n is grey 20 + 4 n, with noise that inter prediction must follow."""
    noise = np.random.default_rng(0).integers(0, 12, (count, 48, 64, 1))
    return [np.broadcast_to(20 + 4 * n + noise[n], (48, 64, 3)).astype(np.uint8) for n in range(count)]


def encode(path: Path, frames: list[np.ndarray], pix_fmt: str = "yuv420p", step=lambda n: n, **options: str) -> Path:
    """As `write_video`, with any pixel format, display times and options of the encoder."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "10", **options})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = step(number), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_variable_frame_rate_changes_no_number(tmp_path: Path) -> None:
    """Frames are counted, whenever they are shown: between 1 and 400 milliseconds apart."""
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.integers(1, 400, 40)).tolist()
    path = encode(tmp_path / "phone clip é.mp4", greys(40), step=lambda n: times[n])
    assert count_frames(path) == 40
    read = dict(read_frames(path, [0, 3, 17, 38, 39]))
    assert list(read) == [0, 3, 17, 38, 39]
    assert {number: round((image.mean() - 25.5) / 4) for number, image in read.items()} == {n: n for n in read}


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p", "yuv444p", "gray"])
def test_other_pixel_formats(tmp_path: Path, pix_fmt: str) -> None:
    import av

    if pix_fmt not in {form.name for form in av.codec.Codec("libx264", "w").video_formats}:
        pytest.skip(f"this libx264 has no {pix_fmt}")
    path = encode(tmp_path / "video.mp4", [np.ascontiguousarray(FACE)] * 3, pix_fmt)
    _, image = next(read_frames(path, [1]))
    assert image.dtype == np.uint8
    expected = FACE.mean(2, keepdims=True) if pix_fmt == "gray" else FACE
    assert np.abs(image - expected.astype(float)).mean() < (12 if pix_fmt == "gray" else 4)


B_FRAMES = {"preset": "medium", "x264-params": "b-pyramid=none:b-adapt=0:scenecut=0"}


def drifting(count: int) -> list[np.ndarray]:
    return [np.roll(FACE, 2 * n, 1)[:96, :128] for n in range(count)]


def test_frames_that_nobody_needs_change_no_pixel(tmp_path: Path) -> None:
    """What is left undecoded serves no other frame: each frame alone is what it is among all of them."""
    path = encode(tmp_path / "video.mp4", drifting(40), **B_FRAMES)
    every = dict(read_frames(path, range(40)))
    for numbers in ([1], [2, 3, 25], [39], list(range(0, 40, 7))):
        some = dict(read_frames(path, numbers))
        assert list(some) == numbers
        assert all(np.array_equal(some[number], every[number]) for number in numbers)


def test_unneeded_frames_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four frames are B frames that nothing refers to."""
    from datasets_shards.frames import video

    decoded = []
    needed = video._decode_needed

    def count(*arguments):
        for number, frame in needed(*arguments):
            decoded.append(number)
            yield number, frame

    path = encode(tmp_path / "video.mp4", drifting(40), **B_FRAMES)
    monkeypatch.setattr(video, "_decode_needed", count)
    list(read_frames(path, [38]))
    assert len(decoded) < 16


def test_a_codec_without_display_times(tmp_path: Path) -> None:
    """Old AVI files have none; frames are then counted as they come."""
    import av

    path = tmp_path / "old.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25), options={"b": "2000000"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in greys(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    read = dict(read_frames(path, [0, 5, 11]))
    assert {number: round((image.mean() - 25.5) / 4) for number, image in read.items()} == {n: n for n in read}


@pytest.mark.parametrize("pix_fmt", PLANAR)
@pytest.mark.parametrize("size", [(180, 320), (182, 322), (181, 321)])
def test_a_region_has_the_pixels_of_the_whole(pix_fmt: str, size: tuple[int, int]) -> None:
    import av

    from datasets_shards.frames.video import _convert

    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
    whole = _convert(frame, None)
    for _ in range(40):
        left, top = (int(rng.integers(-60, side + 30)) for side in size[::-1])
        right, bottom = left + int(rng.integers(1, 200)), top + int(rng.integers(1, 200))
        part = _convert(frame, (left, top, right, bottom))
        assert part.shape == whole.shape
        # a kernel that reaches beyond the frame takes its edge
        rows = np.clip(np.arange(top, bottom), 0, size[0] - 1)
        columns = np.clip(np.arange(left, right), 0, size[1] - 1)
        assert np.array_equal(part[np.ix_(rows, columns)], whole[np.ix_(rows, columns)])


def test_a_crop_out_of_a_region(tmp_path: Path) -> None:
    from datasets_shards.crops.align import CropSettings, cut_crop, source_region

    path = write_video(tmp_path / "000.mp4", [np.roll(FACE, 9 * n, 1) for n in range(3)])
    angle, scale = 0.3, 1.6
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    alignment = np.array([[cos, -sin, -30], [sin, cos, -180], [0, 0, 1]])
    regions = dict.fromkeys((0, 2), source_region(alignment, 128))
    whole, part = dict(read_frames(path, [0, 2])), dict(read_frames(path, [0, 2], regions))
    for number in (0, 2):
        assert not np.array_equal(part[number], whole[number])
        assert np.array_equal(
            cut_crop(part[number], alignment, CropSettings(128)), cut_crop(whole[number], alignment, CropSettings(128))
        )


def test_a_video_that_begins_before_its_first_key_frame(tmp_path: Path) -> None:
    """As a recording cut out of a stream: what can't be decoded is said, and no other frame is given in its place."""
    import av

    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    with av.open(str(whole), "w") as container:
        options = {"x264-params": "keyint=10:min-keyint=10:bframes=3:b-adapt=0:scenecut=0"}
        stream = container.add_stream("libx264", rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for n in range(30):
            frame = np.full((64, 64, 3), 8 * n, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size][5:]
        start = packets[0].dts
        for packet in packets:
            packet.dts, packet.pts, packet.stream = packet.dts - start, packet.pts - start, stream
            target.mux(packet)
    total = count_frames(cut)
    given = []
    with pytest.raises(FrameError, match=r"cut.mp4: has no frame \d+ that can be decoded"):
        given.extend(read_frames(cut, range(total)))  # type: ignore[arg-type]
    values = [round(float(image.mean()) / 8) for _, image in given]
    assert values == sorted(set(values))  # no picture twice, none out of order
    later = dict(read_frames(cut, [total - 1, total - 2]))
    assert [round(float(later[n].mean()) / 8) for n in (total - 2, total - 1)] == [28, 29]


def test_what_follows_from_a_damaged_frame_is_damaged(tmp_path: Path) -> None:
    """FFmpeg flags the damaged frame alone; up to the next key frame nothing after it is what was filmed."""
    import av

    options = {"x264-params": "keyint=20:min-keyint=20:bframes=2:b-adapt=0:scenecut=0"}
    path, broken = encode(tmp_path / "whole.mp4", drifting(40), **options), tmp_path / "broken.mp4"
    whole = dict(read_frames(path, range(40)))
    with av.open(str(path)) as source:
        packet = [packet for packet in source.demux(video=0) if packet.size][4]
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[place + size // 2 : place + size // 2 + 8] = b"\xff" * 8
    broken.write_bytes(data)
    noticed = 0
    for number in range(40):
        try:
            ((_, image),) = read_frames(broken, [number])
        except FrameError:
            noticed += 1
        else:
            assert np.array_equal(image, whole[number])
    assert 10 <= noticed < 20
