"""MozJPEG's own cjpeg: what it writes is what the encoder writes, and it can be the encoder."""

from pathlib import Path

import numpy as np
import pytest

from datasets_shards.errors import InputError
from datasets_shards.jpeg import cjpeg
from datasets_shards.jpeg.mozjpeg import describe_encoder, encode_jpeg, require_encoder
from datasets_shards.jpeg.segments import describe_jpeg
from datasets_shards.jpeg.settings import JpegSettings
from tests.unit.conftest import FACE
from tests.unit.jpegs import assert_same_image

CROP = np.ascontiguousarray(FACE[60:190, 60:200])

SETTINGS = {
    "default": {},
    "progressive": {"mode": "progressive"},
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "no trellis": {"trellis": False},
    "no deringing": {"deringing": False},
    "Annex K": {"quant_table": 0},
    "progressive, PSNR-HVS, no trellis": {"mode": "progressive", "quant_table": 4, "trellis": False},
}


@pytest.fixture
def program() -> cjpeg.Cjpeg:
    """MozJPEG's cjpeg, where this machine has it."""
    try:
        return cjpeg.find_cjpeg()
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("quality", [95, 85, 77, 60, 15, 10])
def test_both_encoders_write_the_same_image(quality: int, name: str, program: cjpeg.Cjpeg) -> None:
    ours = encode_jpeg(CROP, quality, JpegSettings(**SETTINGS[name]))  # type: ignore[arg-type]
    theirs = encode_jpeg(CROP, quality, JpegSettings(encoder="cjpeg", **SETTINGS[name]))  # type: ignore[arg-type]
    assert_same_image(ours, theirs)


def test_cjpegs_own_defaults_are_the_progressive_settings(program: cjpeg.Cjpeg) -> None:
    """Without any flag but the quality."""
    height, width = CROP.shape[:2]
    done = cjpeg._run([program.path, "-quality", "60"], b"P6\n%d %d\n255\n" % (width, height) + CROP.tobytes())
    assert_same_image(encode_jpeg(CROP, 60, JpegSettings(mode="progressive")), done.stdout)
    assert describe_jpeg(done.stdout).table_bits == 16


def test_the_manifest_names_the_program(program: cjpeg.Cjpeg) -> None:
    settings = JpegSettings(encoder="cjpeg", mode="progressive")
    require_encoder(settings)
    described = describe_encoder(15, settings)
    assert described["name"] == "cjpeg"
    assert described["library"] == program.version
    assert described["library"].startswith("mozjpeg version")
    assert described | {"name": "", "library": ""} == describe_encoder(15, JpegSettings(mode="progressive")) | {
        "name": "",
        "library": "",
    }


def install(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program named cjpeg first on PATH."""
    (folder / "cjpeg").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "cjpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


MOZJPEG = 'if [ "$1" = -version ]; then echo "mozjpeg version 4.1.5 (build 20240101)" >&2; exit 0; fi\n'


def test_no_cjpeg_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^--encoder cjpeg: there is no cjpeg on PATH; put .* or take --encoder moz"):
        require_encoder(JpegSettings(encoder="cjpeg"))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('echo "libjpeg-turbo version 2.1.5 (build 20230203)" >&2', "libjpeg-turbo version 2.1.5"),  # Debian's
        ('echo "cjpeg: unknown option" >&2; exit 1', "cjpeg: unknown option"),
        ("exit 0", "nothing"),
    ],
)
def test_another_cjpeg_is_refused(script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, script, monkeypatch)
    with pytest.raises(InputError, match=rf"{tmp_path}/cjpeg isn't MozJPEG's \(it says: {says}.*--encoder mozjpeg"):
        encode_jpeg(CROP, 77, JpegSettings(encoder="cjpeg"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('echo "Bogus input\nmore" >&2; exit 1', r"failed on a crop of 140x130 pixels \(exit code 1: Bogus input\)"),
        ("exec cat > /dev/null", r"failed on a crop .* \(exit code 0: it said nothing\)"),
        ("exit 3", r"failed on a crop .* \(exit code 3: it said nothing\)"),  # without reading what it is given
        ("kill -9 $$", r"failed on a crop .* \(exit code -9: it said nothing\)"),
        ("exec sleep 60", r"hung: no answer within 0 s"),
    ],
)
def test_a_failing_cjpeg_is_one_clear_line(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, MOZJPEG + script, monkeypatch)
    require = cjpeg.find_cjpeg()
    assert require.version == "mozjpeg version 4.1.5 (build 20240101)"
    if "sleep" in script:
        monkeypatch.setattr(cjpeg, "TIMEOUT", 0.2)
    with pytest.raises(InputError, match=message) as caught:
        encode_jpeg(CROP, 77, JpegSettings(encoder="cjpeg"))
    assert "\n" not in str(caught.value)


def test_a_program_that_cannot_start_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "", monkeypatch)
    (tmp_path / "cjpeg").write_text("#!/nowhere/sh\n")
    with pytest.raises(InputError, match=r"cjpeg can't be run \(No such file or directory\)"):
        require_encoder(JpegSettings(encoder="cjpeg"))


def test_every_setting_becomes_a_flag() -> None:
    settings = JpegSettings("cjpeg", "progressive", "4:2:2", trellis=False, deringing=False, quant_table=5)
    expected = "-quality 50 -progressive -quant-table 5 -sample 2x1 -notrellis -noovershoot"
    assert cjpeg.flags(50, settings) == expected.split()
    assert cjpeg.flags(77, JpegSettings("cjpeg")) == ["-quality", "77", "-baseline", "-quant-table", "3"]
