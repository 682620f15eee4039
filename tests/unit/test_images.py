"""Image files of every kind, and what is wrong with some."""

import contextlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from datasets_shards.faces.detector import FaceSettings
from datasets_shards.faces.rows import OK, UNREADABLE_FRAME, detect_video
from datasets_shards.frames import read_frames
from datasets_shards.frames.errors import FrameError
from datasets_shards.frames.image import read_image
from datasets_shards.frames.pixels import MAX_PIXELS
from datasets_shards.sources import open_source
from tests.unit.conftest import FACE

GREY = FACE.mean(2).astype(np.uint8)


def png(width: int, height: int, depth: int, colour: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG file that declares what it is told to, whatever `data` holds; `extra`: a chunk's kind and content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(extra[:4], extra[4:]) if extra else b"")
    return head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def error_of(path: Path) -> str:
    with pytest.raises(FrameError) as caught:
        read_image(path)
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


@pytest.mark.parametrize("name", ["plain.png", "with spaces.png", "vidéo 顔.png"])
def test_rgb_comes_back(tmp_path: Path, name: str) -> None:
    Image.fromarray(FACE).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.flags.c_contiguous
    assert np.array_equal(image, FACE)


def test_grey_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(GREY).save(tmp_path / "grey.jpg", quality=95)
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(GREY[:, :, None], 3, 2))
    jpeg = read_image(tmp_path / "grey.jpg")
    assert jpeg.shape == (256, 256, 3)
    assert np.abs(jpeg[:, :, 1] - GREY.astype(int)).mean() < 2


@pytest.mark.parametrize("colour", ["grey", "rgb"])
def test_sixteen_bits_become_eight(tmp_path: Path, colour: str) -> None:
    eight = GREY[:, :, None] if colour == "grey" else FACE
    deep = (eight.astype(np.uint16) << 8 | 0x40).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    (tmp_path / "deep.png").write_bytes(png(256, 256, 16, 0 if colour == "grey" else 2, rows))
    assert np.array_equal(read_image(tmp_path / "deep.png"), np.broadcast_to(eight, (256, 256, 3)))


def test_palette_and_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(FACE).quantize(64)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    alpha = np.full((256, 256), 255, np.uint8)
    alpha[:128] = 0
    Image.fromarray(np.dstack([FACE, alpha])).save(tmp_path / "alpha.png")
    image = read_image(tmp_path / "alpha.png")
    assert not image[:128].any()
    assert np.array_equal(image[128:], FACE[128:])


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.fromarray(FACE).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    image = read_image(tmp_path / "print.jpg")
    assert image.shape == (256, 256, 3)
    correlation = np.corrcoef(image.ravel(), FACE.ravel())[0, 1]
    assert correlation > 0.9  # the colours of some printing process, not their negative


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(FACE[:128]).save(tmp_path / "phone.jpg", quality=95, exif=exif)
    image = read_image(tmp_path / "phone.jpg")
    assert image.shape == (256, 128, 3)
    assert np.abs(image - np.rot90(FACE[:128], -1).astype(int)).mean() < 4


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize(
    ("orientation", "suffix"), [*((n, "jpg") for n in UPRIGHT), (6, "png"), (8, "tif"), (5, "webp")]
)
def test_photographs_are_read_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    """At a size at which the decoder streams: in small files every order of rows will do."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.kron(FACE, np.ones((3, 4, 1), np.uint8))
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(stored).save(path, exif=exif, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    image = read_image(path)
    expected = UPRIGHT[orientation](stored).astype(int)
    assert image.shape == expected.shape
    assert np.abs(image - expected).mean() < 4


LONG_TEXT = zlib.compress(bytes(2 << 20))


@pytest.mark.parametrize(
    ("chunk", "is_read"),
    [
        (b"zTXtprompt\0\0" + LONG_TEXT, True),
        (b"iTXtprompt\0\1\0\0\0" + LONG_TEXT, True),
        (b"iCCPprofile\0\0" + LONG_TEXT, True),
        *(
            (kind + content, None)
            for kind in (b"pHYs", b"cHRM", b"sRGB", b"tRNS", b"gAMA")
            for content in (b"", b"\1\2\3")
        ),
    ],
)
def test_odd_metadata_ends_nothing(tmp_path: Path, chunk: bytes, is_read: bool | None) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in FACE)
    (tmp_path / "odd.png").write_bytes(png(256, 256, 8, 2, rows, chunk))
    image: np.ndarray | None = None
    with contextlib.suppress(FrameError):
        image = read_image(tmp_path / "odd.png")
    assert image is not None or not is_read
    assert image is None or np.array_equal(image, FACE)


@pytest.mark.parametrize(
    "content",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><image href="victim.png"/></svg>',
        b"2 2\n1 2\n3 4\n",
        b"P6 1 1 255 abc",
        b"%PDF-1.4",
        b"GIF89a",
    ],
)
def test_no_other_loader_is_tried(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert error_of(tmp_path / "a.png").endswith(
        "is no image, by its content (JPEG, PNG, WebP, TIFF, AVIF and BMP are read)"
    )


def test_the_content_says_what_an_image_is(tmp_path: Path) -> None:
    Image.fromarray(FACE).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(read_image(tmp_path / "a.jpg"), FACE)


def test_pixels_that_are_no_bytes_are_refused(tmp_path: Path) -> None:
    Image.fromarray(FACE.mean(2).astype(np.float32)).save(tmp_path / "a.tif")
    assert "has pixels of type float; save it with 8 or 16 bits per channel" in error_of(tmp_path / "a.tif")


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "away.png").symlink_to(tmp_path / "nowhere")
    assert error_of(tmp_path / "fifo.png").endswith("fifo.png: is a FIFO, no file")
    assert error_of(tmp_path / "away.png").endswith("away.png: a link to no file")
    assert error_of(Path("/dev/zero")).endswith("is a device, no file")


@pytest.mark.parametrize("suffix", ["avif", "webp", "tif", "bmp"])
def test_other_formats(tmp_path: Path, suffix: str) -> None:
    if suffix in ("avif", "webp") and not features.check(suffix):
        pytest.skip(f"Pillow has no {suffix} to write one with")
    path = tmp_path / f"face.{suffix}"
    Image.fromarray(FACE).save(path, **({"quality": 95} if suffix in ("avif", "webp") else {}))
    image = read_image(path)
    assert np.abs(image - FACE.astype(int)).mean() < 4


def test_a_png_bomb_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000, 8, 2, bytes(1000)))
    assert path.stat().st_size < 200
    assert error_of(path).endswith(f"bomb.png: 60000x60000 pixels, more than the {MAX_PIXELS} that are read")


def test_what_is_no_image_or_not_whole(tmp_path: Path) -> None:
    Image.fromarray(FACE).save(tmp_path / "whole.jpg", quality=90)
    Image.fromarray(FACE).save(tmp_path / "whole.png")
    Image.fromarray(FACE).save(tmp_path / "whole.bmp")
    for suffix in ("jpg", "png", "bmp"):
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
        assert "can't be decoded" in error_of(tmp_path / f"cut.{suffix}")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no image")
    assert "is no image" in error_of(tmp_path / "empty.png")
    assert "is no image" in error_of(tmp_path / "text.jpg")
    (tmp_path / "text.bmp").write_text("no image")
    assert "is no image" in error_of(tmp_path / "text.bmp")
    (tmp_path / "head.bmp").write_bytes(b"BM no more")
    assert "can't be decoded (UnidentifiedImageError: cannot identify image file" in error_of(tmp_path / "head.bmp")
    assert error_of(tmp_path / "gone.bmp").endswith("gone.bmp: no such file")
    (tmp_path / "bomb.bmp").write_bytes(
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 9000, 9000, 1, 24, *[0] * 6)
    )
    assert "9000x9000 pixels, more than" in error_of(tmp_path / "bomb.bmp")
    assert error_of(tmp_path / "gone.png").endswith("gone.png: no such file")
    (tmp_path / "folder.png").mkdir()
    assert "folder.png: is a folder, no file" in error_of(tmp_path / "folder.png")


def test_one_bad_image_leaves_the_others(tmp_path: Path) -> None:
    """Through the source and the face stage: bad ones are named, the rest are whole."""
    folder = tmp_path / "mes images/fake/Jürgen M"
    folder.mkdir(parents=True)
    Image.fromarray(FACE).save(folder / "1 a.png")
    Image.fromarray(GREY).save(folder / "2 grey.png")
    Image.fromarray(FACE).convert("CMYK").save(folder / "3.jpg", quality=95)
    (folder / "4.png").write_bytes(png(60_000, 60_000, 8, 2))
    (folder / "5.jpg").touch()
    (video,) = open_source(tmp_path / "mes images").videos
    assert [isinstance(image, FrameError) for _, image in read_frames(video, range(5))] == [False] * 3 + [True] * 2
    rows = detect_video(video, FaceSettings(frames_per_video=None))
    assert [row["status"] for row in rows] == [OK] * 3 + [UNREADABLE_FRAME] * 2
    assert rows[3]["reason"].startswith("4.png: 60000x60000 pixels")
    assert rows[4]["reason"].startswith("5.jpg: is no image")
