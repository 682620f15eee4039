"""Flags that several commands share, and what parses their values."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from datasets_shards.errors import InputError
from datasets_shards.pool import default_workers
from datasets_shards.schema import METHODS
from datasets_shards.sources import COMPRESSIONS, LAYOUTS, Selection

ALL = "all"


class SettingError(argparse.ArgumentTypeError, ValueError):
    """A flag's value is wrong. argparse shows the message of the one base; jsonargparse catches the other."""


def number(kind: type, low: float, high: float) -> Callable[[Any], Any]:
    """A parser for a number from `low` to `high`, with a message that says so."""

    def parse(text: Any) -> Any:
        try:
            value = None if isinstance(text, bool) else kind(text)
            if value is not None and value != float(text):  # YAML's 64.7 is no 64
                value = None
        except (ValueError, TypeError, OverflowError):
            value = None
        if value is None or not low <= value <= high:
            word = "a whole number" if kind is int else "a number"
            raise SettingError(f"{text} is not {word} from {low:g} to {high:g}")
        return value

    return parse


def add_switch(parser: ArgumentParser, flag: str, text: str) -> None:
    """A flag without a value; in a configuration file it is true or false, where argparse's takes any word as true."""
    parser.add_argument(flag, type=bool, nargs="?", const=True, default=False, metavar="BOOL", help=text)


def count_or_all(text: Any) -> Any:
    """A whole number from 1 on, or "all"."""
    return ALL if text == ALL else number(int, 1, 100_000)(text)


def add_source_arguments(parser: ArgumentParser) -> None:
    """What to read and how to sample it."""
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these settings")
    add_selection_arguments(parser)
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument(
        "--frames-per-video",
        type=count_or_all,
        metavar="N",
        help="frames taken from each video, evenly spaced over the whole of it, or 'all' (default: 32)",
    )
    frames.add_argument(
        "--every",
        type=number(int, 1, 100_000),
        metavar="K",
        help="take the first frame and every K-th after it instead",
    )
    parser.add_argument(
        "--upsample",
        type=number(int, 0, 3),
        metavar="N",
        help="times a frame is doubled before detection: smaller faces are found, four times slower each (default: 1)",
    )
    parser.add_argument(
        "--reduce",
        type=number(int, 1, 8),
        metavar="N",
        help="detect on frames N times smaller, N*N times faster; only faces N times larger are found (default: 1)",
    )
    parser.add_argument(
        "--min-face",
        type=number(int, 1, 10_000),
        metavar="N",
        help="a face whose box has a shorter side, pixels, is dropped as too small (default: 48)",
    )
    add_workers_argument(parser)


def add_selection_arguments(parser: ArgumentParser, more: str = "") -> None:
    """Which videos of which source; `more` tells what else the source may be."""
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="DIR",
        help="root of FF++'s tree of videos, of DeepfakeBench's tree of frames, or a folder with real/ and fake/ in it"
        + more,
    )
    parser.add_argument("--compression", choices=COMPRESSIONS, help="needed only where the source has several of them")
    parser.add_argument(
        "--layout", choices=tuple(LAYOUTS), help="needed only where the source could be read in several ways"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="M", help="only these methods (default: all)")
    parser.add_argument(
        "--videos",
        type=Path,
        metavar="FILE",
        help="text file with one name a line, 004_982 or FaceSwap/004_982; # begins a comment (default: all videos)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="DeepfakeBench's JSON file, where it isn't in one of its usual places"
    )
    add_switch(parser, "--crops", "the images of a plain folder are face crops already, taken as they are")


def selection_from(args: Any) -> Selection:
    """The selection that the flags of `add_selection_arguments` say.

    Raises:
        InputError: the file of --videos can't be read, or names no video.
    """
    return Selection(
        compression=args.compression,
        layout=args.layout,
        methods=None if args.methods is None else tuple(args.methods),
        names=None if args.videos is None else _names_in(args.videos),
        names_from="" if args.videos is None else f"--videos {args.videos}",
        cropped=args.crops,
        json=args.json,
    )


def _names_in(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"--videos {path}: no such file") from None
    except OSError as error:
        raise InputError(f"--videos {path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"--videos {path}: not a text file in UTF-8") from None
    names = [line.partition("#")[0].strip() for line in lines]
    if not any(names):
        raise InputError(f"--videos {path}: names no video")
    return frozenset(name for name in names if name)


def add_workers_argument(parser: ArgumentParser) -> None:
    """`--workers`."""
    parser.add_argument(
        "--workers",
        type=number(int, 1, 1024),
        metavar="N",
        default=default_workers(),
        help="processes; the result doesn't depend on it",
    )
