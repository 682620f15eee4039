"""What a registered model takes: image files as the packer reads them, and none that are too large."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from mlflow.exceptions import MlflowException
from PIL import Image

from datasets_shards.frames.image import read_image
from fdtrain.registry.serving import MAX_PIXELS, decode
from tests.unit.conftest import FACE

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(width: int, height: int, depth: int, colour: int) -> bytes:
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(pixels: np.ndarray, depth: int, colour: int, *chunks: bytes) -> bytes:
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in pixels)
    parts = [header(width, height, depth, colour), *chunks, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"".join(parts)


@pytest.mark.parametrize(
    ("depth", "colour", "is_clear"),
    [
        *((depth, colour, False) for depth in (8, 16) for colour in (GREY, RGB, GREY_ALPHA, RGB_ALPHA)),
        *((8, GREY, True), (16, GREY, True), (8, RGB, True)),  # one colour is transparent
    ],
)
def test_a_png_is_read_as_the_packer_reads_it(tmp_path: Path, depth: int, colour: int, is_clear: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 1 << depth, (24, 16, CHANNELS[colour]))
    chunks = [chunk(b"tRNS", pixels[3, 5].astype(">u2").tobytes())] if is_clear else []
    content = png(pixels, depth, colour, *chunks)
    (tmp_path / "a.png").write_bytes(content)
    found, jpeg = decode(content, 0)
    assert jpeg is None
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, read_image(tmp_path / "a.png"))
    assert found.max() > 200
    assert not is_clear or not found[3, 5].any()
    if colour == GREY and not is_clear:
        np.testing.assert_array_equal(found[..., 0], pixels[..., 0] >> (depth - 8))


def test_a_palette_with_transparent_entries(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    palette = chunk(b"PLTE", rng.integers(0, 256, 12).astype(np.uint8).tobytes())
    content = png(rng.integers(0, 4, (8, 8, 1)), 8, PALETTE, palette, chunk(b"tRNS", bytes([0, 100, 255])))
    (tmp_path / "a.png").write_bytes(content)
    np.testing.assert_array_equal(decode(content, 0)[0], read_image(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("mode", "suffix", "orientation"),
    [("RGB", "jpg", 8), ("RGB", "jpg", 3), ("CMYK", "jpg", 1), ("L", "jpg", 1), ("RGB", "png", 6), ("RGB", "webp", 6)],
)
def test_served_and_predicted_pixels_are_the_same(tmp_path: Path, mode: str, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(FACE[:128]).convert(mode).save(path, exif=exif)
    found, jpeg = decode(path.read_bytes(), 0)
    np.testing.assert_array_equal(found, read_image(path))
    assert found.shape == ((256, 128, 3) if orientation >= 5 else (128, 256, 3))
    assert (jpeg is None) == (suffix != "jpg")


@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
def test_a_jpeg_has_the_pixels_of_the_loader(subsampling: str) -> None:
    """So that files get the scores that evaluation gave the same crops."""
    content = simplejpeg.encode_jpeg(np.ascontiguousarray(FACE), 40, colorsubsampling=subsampling)
    loaded = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)
    np.testing.assert_array_equal(decode(content, 0)[0], loaded)


def large_jpeg(width: int, height: int) -> bytes:
    """A small JPEG that declares another size."""
    content = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    place = next(content.index(bytes([0xFF, marker])) for marker in (0xC0, 0xC2) if bytes([0xFF, marker]) in content)
    struct.pack_into(">HH", content, place + 5, height, width)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        header(MAX_PIXELS // 1024, 1025, 8, RGB) + chunk(b"IDAT", b""),
        header(60_000, 60_000, 8, RGB) + chunk(b"IDAT", b""),  # for which Pillow has an error of its own
        large_jpeg(60_000, 1200),
    ],
    ids=["png", "huge png", "jpeg"],
)
def test_more_pixels_than_are_read_are_refused_by_the_header(content: bytes) -> None:
    with pytest.raises(
        MlflowException, match=rf"^image 3: \d+x\d+ pixels, more than the {MAX_PIXELS} that are read; give the"
    ):
        decode(content, 3)
