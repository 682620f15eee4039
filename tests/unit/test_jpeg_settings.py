"""The settings of the JPEG step, and what is read from a file's headers."""

import pickle
import struct
from typing import Any

import numpy as np
import pytest

from datasets_shards.errors import InputError
from datasets_shards.jpeg.mozjpeg import encode_jpeg
from datasets_shards.jpeg.segments import describe_jpeg, jpeg_segments
from datasets_shards.jpeg.settings import JpegSettings, check_quality
from tests.conftest import run_python

DATA = encode_jpeg(np.arange(40 * 24 * 3, dtype=np.uint32).astype(np.uint8).reshape(24, 40, 3), 77)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder", "mozjpg", r"^encoder 'mozjpg' is unknown \(did you mean mozjpeg\?\); choose mozjpeg or cjpeg$"),
        ("mode", "sequential", r"^jpeg.mode 'sequential' is unknown; choose baseline or progressive$"),
        ("subsampling", "4:1:1", r"^jpeg.subsampling '4:1:1' .*choose auto, 4:4:4, 4:2:2 or 4:2:0$"),
        ("trellis", "no", r"^jpeg.trellis 'no': choose true or false$"),
        ("deringing", 1, r"^jpeg.deringing 1: choose true or false$"),
        ("quant_table", 9, r"^jpeg.quant_table 9: choose a whole number from 0 to 8; 3 is cjpeg's default$"),
        ("quant_table", True, r"^jpeg.quant_table True: "),
    ],
)
def test_a_wrong_value_is_one_clear_line(key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        JpegSettings(**{key: value})


def test_settings_travel_to_a_worker() -> None:
    settings = JpegSettings(mode="progressive", quant_table=0)
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - our own bytes


def test_settings_import_nothing_heavy() -> None:
    heavy = "{'numpy', 'pyvips', 'jpeglib', 'pyarrow'} & set(sys.modules)"
    done = run_python("-c", f"import sys, datasets_shards.jpeg.settings; print({heavy})")
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("quality", [0, 101, -1, 77.5, "77", True])
def test_a_quality_outside_1_to_100_is_refused(quality: Any) -> None:
    with pytest.raises(InputError, match=r"choose a whole number from 1 to 100"):
        check_quality(quality)


def test_every_quality_is_accepted() -> None:
    for quality in (*range(1, 101), "raw"):
        check_quality(quality)


def test_headers_are_read() -> None:
    facts = describe_jpeg(DATA)
    assert (facts.sof, facts.form, facts.width, facts.height) == (0xC0, "baseline", 40, 24)
    assert (facts.components, facts.sampling, facts.subsampling) == (3, ((2, 2), (1, 1), (1, 1)), "4:2:0")
    assert facts.quant_tables[facts.tables[0]][:4] == (7, 7, 7, 7)  # 16 at 46 %
    assert facts.markers[-1] == 0xDA
    assert [marker for marker, _ in jpeg_segments(DATA)] == list(facts.markers)
    assert describe_jpeg(DATA[:2] + b"\xff" + DATA[2:]) == facts  # a fill byte


def test_every_truncation_is_noticed() -> None:
    for size in range(len(DATA)):
        with pytest.raises(ValueError, match=r"no JPEG|truncated JPEG"):
            describe_jpeg(DATA[:size])


def _frame(data: bytes) -> int:
    return data.index(b"\xff\xc0")


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"\x89PNG\r\n\x1a\n", "^no JPEG: it begins with 89 50 instead of ff d8"),
        (b"", "^no JPEG: it begins with nothing"),
        (DATA[:2] + b"\0" + DATA[3:], "no marker at byte 2"),
        (DATA[:4] + struct.pack(">H", 1) + DATA[6:], "impossible length"),
        (DATA[:2] + b"\xff\xd9", "ends without image data"),
        (DATA.replace(b"\xff\xc0", b"\xff\xe5", 1), "no frame header"),
        (DATA[: _frame(DATA)] + DATA[_frame(DATA) : _frame(DATA) + 19] + DATA[_frame(DATA) :], "2 frame headers"),
        (DATA[: _frame(DATA) + 9] + b"\x02" + DATA[_frame(DATA) + 10 :], "another length than its components"),
        (DATA[: _frame(DATA) + 5] + b"\0\0" + DATA[_frame(DATA) + 7 :], "40x0 pixels"),
        (DATA[: _frame(DATA) + 12] + b"\x03" + DATA[_frame(DATA) + 13 :], "quantization table 3 is used"),
        (DATA.replace(b"\xff\xdb\x00\x43\x00", b"\xff\xdb\x00\x43\x10", 1), "quantization table has another length"),
    ],
)
def test_damage_is_named(damaged: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe_jpeg(damaged)
