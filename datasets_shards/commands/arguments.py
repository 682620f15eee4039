"""Flags that several commands share, and what parses their values."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from datasets_shards.pool import default_workers
from datasets_shards.sources import COMPRESSIONS


class SettingError(argparse.ArgumentTypeError, ValueError):
    """A flag's value is wrong. argparse shows the message of the one base; jsonargparse catches the other."""


def number(kind: type, low: float, high: float) -> Callable[[Any], Any]:
    """A parser for a number from `low` to `high`, with a message that says so."""

    def parse(text: Any) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            word = "a whole number" if kind is int else "a number"
            raise SettingError(f"{text} is not {word} from {low:g} to {high:g}")
        return value

    return parse


def add_source_arguments(parser: ArgumentParser) -> None:
    """What to read and how to sample it."""
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these settings")
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="root of an FF++ tree of videos")
    parser.add_argument("--compression", choices=COMPRESSIONS, help="needed only where the source has several of them")
    parser.add_argument(
        "--frames-per-video",
        type=number(int, 1, 100_000),
        metavar="N",
        help="frames taken from each video, evenly spaced over the whole of it (default: 32)",
    )
    parser.add_argument(
        "--upsample",
        type=number(int, 0, 3),
        metavar="N",
        help="times a frame is doubled before detection: smaller faces are found, four times slower each (default: 1)",
    )
    parser.add_argument(
        "--min-face",
        type=number(int, 1, 10_000),
        metavar="N",
        help="a face whose box has a shorter side, pixels, is dropped as too small (default: 48)",
    )
    add_workers_argument(parser)


def add_workers_argument(parser: ArgumentParser) -> None:
    """`--workers`."""
    parser.add_argument(
        "--workers",
        type=number(int, 1, 1024),
        metavar="N",
        default=default_workers(),
        help="processes; the result doesn't depend on it",
    )
