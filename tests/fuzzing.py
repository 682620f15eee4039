"""Damaged files: a JPEG, a PNG, a WebP and an MP4 with every kind of metadata, mutated by a seed."""

import io
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1")
SUFFIXES = ("jpg", "png", "webp", "mp4")


def whole_files(picture: np.ndarray) -> dict[str, bytes]:
    """A file of each kind, by suffix, of a square picture, RGB uint8 [N, N, 3]."""
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "a face " * 50, zip=True)
    text.add(b"gAMA", struct.pack(">I", 45455))
    text.add(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))
    extra = {"jpg": {"exif": exif, "quality": 80}, "png": {"pnginfo": text, "exif": exif}, "webp": {"exif": exif}}
    files = {}
    for suffix, options in extra.items():
        buffer = io.BytesIO()
        form = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix]
        Image.fromarray(np.ascontiguousarray(picture)).save(buffer, form, **options)
        files[suffix] = buffer.getvalue()
    return files | {"mp4": _video(picture)}


def _video(picture: np.ndarray) -> bytes:
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.mp4")
        with av.open(str(path), "w") as container:
            container.metadata["title"] = "a face"
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.height, stream.width = picture.shape[:2]
            stream.pix_fmt = "yuv420p"
            for shift in range(4):
                shifted = np.ascontiguousarray(np.roll(picture, 4 * shift, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()


def mutate(data: bytes, seed: int) -> bytes:
    """Another file for each seed; half of the changes are within the first 1000 bytes, or the last."""
    rng = np.random.default_rng(seed)
    mutated = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        low, high = ((0, len(mutated)), (0, min(1000, len(mutated))), (max(0, len(mutated) - 1000), len(mutated)))[
            int(rng.choice(3, p=[0.5, 0.3, 0.2]))
        ]
        place, length = int(rng.integers(low, max(high, low + 1))), int(rng.integers(1, 64))
        kind = int(rng.integers(6))
        if kind <= 1:
            mutated[place : place + 1] = bytes([int(rng.integers(256))])
        elif kind == 2:
            mutated[place : place + 4] = EXTREMES[int(rng.integers(len(EXTREMES)))]
        elif kind == 3:
            del mutated[place : place + length]
        elif kind == 4:
            mutated[place:place] = mutated[place : place + length]
        elif rng.random() < 0.3:
            del mutated[max(place, 16) :]
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        _mend_checksums(mutated)  # or nothing but the first check would ever be tried
    return bytes(mutated)


def _mend_checksums(png: bytearray) -> None:
    place = 8
    while place + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, place)
        if place + 12 + length > len(png):
            return
        struct.pack_into(">I", png, place + 8 + length, zlib.crc32(png[place + 4 : place + 8 + length]))
        place += 12 + length
