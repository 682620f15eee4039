"""Image files of every kind, and what is wrong with some."""

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
from datasets_shards.frames.image import MAX_PIXELS, read_image
from datasets_shards.sources import open_source
from tests.unit.conftest import FACE

GREY = FACE.mean(2).astype(np.uint8)


def png(width: int, height: int, depth: int, colour: int, data: bytes = b"") -> bytes:
    """A PNG file that declares what it is told to, whatever `data` holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


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
    assert "can't be decoded (cannot identify image file" in error_of(tmp_path / "text.bmp")
    assert error_of(tmp_path / "gone.bmp").endswith("gone.bmp: no such file")
    (tmp_path / "bomb.bmp").write_bytes(
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 9000, 9000, 1, 24, *[0] * 6)
    )
    assert "9000x9000 pixels, more than" in error_of(tmp_path / "bomb.bmp")
    assert error_of(tmp_path / "gone.png").endswith("gone.png: no such file")
    (tmp_path / "folder.png").mkdir()
    assert "folder.png: is no image" in error_of(tmp_path / "folder.png")


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
