"""MozJPEG's own program as the encoder (`--encoder cjpeg`): one process per crop.

Each worker of a stage waits for its process before it starts the next, so never more run at a time than `--workers`
says. Pixels go in by standard input as PPM, the file comes out by standard output; nothing is written to disk.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

import numpy as np

from datasets_shards.errors import InputError
from datasets_shards.jpeg.settings import SAMPLING_FACTORS, JpegSettings

TIMEOUT = 60.0
"""Seconds for one crop, which takes some milliseconds."""

REMEDY = (
    "put the cjpeg of MozJPEG (https://github.com/mozilla/mozjpeg) first on PATH, "
    "or take --encoder mozjpeg, which needs no program"
)


@dataclass(frozen=True)
class Cjpeg:
    """MozJPEG's cjpeg on this machine.

    Args:
        path: the program.
        version: the line it prints about itself, such as "mozjpeg version 4.1.5 (build 20240101)".
    """

    path: str
    version: str


def encode(crop: np.ndarray, quality: int, settings: JpegSettings) -> bytes:
    """Compress RGB uint8 [H, W, 3] by a process of its own.

    Raises:
        InputError: no MozJPEG cjpeg on PATH, or it failed or hung.
    """
    height, width = crop.shape[:2]
    found = find_cjpeg()
    header = b"P6\n%d %d\n255\n" % (width, height)
    done = _run([found.path, *flags(quality, settings)], header + crop.tobytes())
    if done.returncode != 0 or not (done.stdout.startswith(b"\xff\xd8") and done.stdout.endswith(b"\xff\xd9")):
        raise InputError(
            f"{found.path} failed on a crop of {width}x{height} pixels (exit code {done.returncode}: "
            f"{_first_line(done.stderr) or 'it said nothing'}); {REMEDY}"
        )
    return done.stdout


def flags(quality: int, settings: JpegSettings) -> list[str]:
    """cjpeg's flags for a quality and settings."""
    words = ["-quality", str(quality), f"-{settings.mode}", "-quant-table", str(settings.quant_table)]
    if settings.subsampling != "auto":
        words += ["-sample", "{}x{}".format(*SAMPLING_FACTORS[settings.subsampling])]
    return words + ["-notrellis"] * (not settings.trellis) + ["-noovershoot"] * (not settings.deringing)


def find_cjpeg() -> Cjpeg:
    """The first cjpeg on PATH.

    Raises:
        InputError: there is none, or it isn't MozJPEG's; libjpeg and libjpeg-turbo have programs of that name.
    """
    return _find_cjpeg(os.environ.get("PATH", os.defpath))


@cache
def _find_cjpeg(search: str) -> Cjpeg:
    path = shutil.which("cjpeg", path=search)
    if path is None:
        raise InputError(f"--encoder cjpeg: there is no cjpeg on PATH; {REMEDY}")
    done = _run([path, "-version"], b"")
    version = _first_line(done.stderr) or _first_line(done.stdout)
    if done.returncode != 0 or not version.startswith("mozjpeg version"):
        raise InputError(f"--encoder cjpeg: {path} isn't MozJPEG's (it says: {version or 'nothing'}); {REMEDY}")
    return Cjpeg(path, version)


def _run(command: list[str], data: bytes) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"{command[0]} hung: no answer within {TIMEOUT:.0f} s; {REMEDY}") from None
    except OSError as error:
        raise InputError(f"{command[0]} can't be run ({error.strerror}); {REMEDY}") from None


def _first_line(text: bytes) -> str:
    return text.decode(errors="replace").strip().partition("\n")[0]
