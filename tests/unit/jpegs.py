"""Comparing JPEG files by what they hold: quantization tables and DCT coefficients."""

import tempfile
from pathlib import Path

import jpeglib
import numpy as np

from datasets_shards.jpeg.segments import describe_jpeg


def coefficients(data: bytes) -> list[np.ndarray]:
    """The quantized DCT coefficients of each component, int16 [rows, columns, 8, 8] of blocks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.jpg")
        path.write_bytes(data)
        image = jpeglib.read_dct(str(path))
        return [np.array(component) for component in (image.Y, image.Cb, image.Cr)]


def same_coefficients(one: bytes, other: bytes) -> bool:
    """Whether every coefficient of every component is equal."""
    return all(np.array_equal(a, b) for a, b in zip(coefficients(one), coefficients(other), strict=True))


def assert_same_image(one: bytes, other: bytes, same_form: bool = True) -> None:
    """Equal size, sampling, quantization tables and coefficients, without exception; equal form too, unless said."""
    here, there = describe_jpeg(one), describe_jpeg(other)
    assert (here.width, here.height, here.sampling) == (there.width, there.height, there.sampling)
    if same_form:
        assert (here.form, here.table_bits) == (there.form, there.table_bits)
    tables = [[facts.quant_tables[identifier] for identifier in facts.tables] for facts in (here, there)]
    assert tables[0] == tables[1]
    assert same_coefficients(one, other)
