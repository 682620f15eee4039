"""The command line of the offline stage: its flags, and a parser whose every complaint is one line."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

import datasets_shards
from datasets_shards.commands import run_demo, run_faces, run_pack
from datasets_shards.errors import nearest
from datasets_shards.jpeg.mozjpeg import check_quality
from datasets_shards.pool import default_workers
from datasets_shards.schema import Quality, parse_quality
from datasets_shards.sources import COMPRESSIONS

PROG = "python -m datasets_shards"
QUALITIES = (77, 60, 15, 10)
USAGE_ERROR = 2

COMMANDS: dict[str, Callable[[Any], None]] = {"demo": run_demo, "faces": run_faces, "pack": run_pack}


class SettingError(argparse.ArgumentTypeError, ValueError):
    """A flag's value is wrong. argparse shows the message of the one base; jsonargparse catches the other."""


class OneLineParser(ArgumentParser):
    """Ends a wrong command line with exit code 2 and one line on stderr.

    The line names the flag, the value, what is allowed and the nearest right flag.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the complaint and exit."""
        print(f"{self.prog}: error: {self._explain(message)}", file=sys.stderr)
        sys.exit(USAGE_ERROR)

    def flags(self, command: str | None = None) -> list[str]:
        """The flags that this parser, or one of its commands, knows."""
        if command is not None:
            commands = next(action for action in self._actions if isinstance(action, argparse._SubParsersAction))
            return commands.choices[command].flags()
        return [flag for action in self._actions for flag in action.option_strings]

    def _explain(self, message: str) -> str:
        line = " ".join(message.split())
        if match := re.match(r"unrecognized arguments: (\S+)", line):
            word = match[1].partition("=")[0]
            guess = nearest(word, self.flags())
            hint = f"did you mean {guess}?" if guess else f"see {self.prog} --help"
            return f"no flag {word}; {hint}" if word.startswith("-") else f"unexpected argument {word!r}; {hint}"
        if match := re.match(r"argument command: invalid choice: '(.*)' \(choose from (.*)\)", line):
            names = match[2].replace("'", "")
            guess = nearest(match[1], names.split(", "))
            return f"no command {match[1]!r}; " + (f"did you mean {guess}? " if guess else "") + f"commands: {names}"
        if match := re.match(r"Subcommand '(\w+)' does not accept option '(.*)'", line):
            guess = nearest(f"--{match[2].replace('_', '-')}", self.flags(match[1]))
            hint = f"did you mean {guess[2:].replace('-', '_')}?" if guess else f"see {self.prog} {match[1]} --help"
            return f"the configuration file has no key {match[2]!r} for {match[1]}; {hint}"
        if match := re.match(r'expected "command" to be one of \{(.*?)\}', line):
            return f"give a command: {match[1].replace(',', ', ')}"
        if match := re.match(r"the following arguments are required: (.*)", line):
            names = [name.rpartition(".") for name in match[1].split(", ")]
            flags = [f"--{name.replace('_', '-')}" for _, _, name in names]
            return f"missing {', '.join(flags)}; see {' '.join([self.prog, names[0][0]]).strip()} --help"
        if match := re.match(r'Parser key "(\w+)": ?(.*)', line):
            return f"--{match[1].replace('_', '-')}: {match[2]}"
        return line.removeprefix("argument ")


class HelpFormatter(DefaultHelpFormatter):
    """Shows each flag's help and its default; the metavar stands for its type."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required and action.option_strings:
            return f"{text} (required)"
        silent = not action.option_strings or action.default in (None, argparse.SUPPRESS)
        return text if silent else f"{text} (default: %(default)s)"


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


def build_parser() -> OneLineParser:
    """The parser of all commands: `command` and, under its name, its flags."""
    parser = OneLineParser(
        prog=PROG, description=datasets_shards.__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    commands = parser.add_subcommands(required=True, dest="command")
    add_arguments = {"demo": _add_demo_arguments, "faces": _add_faces_arguments, "pack": _add_pack_arguments}
    for name, run in COMMANDS.items():
        summary = (run.__doc__ or "").strip()
        command = OneLineParser(description=summary, allow_abbrev=False, formatter_class=HelpFormatter)
        add_arguments[name](command)
        commands.add_subcommand(name, command, help=summary.splitlines()[0])
        command.prog = f"{PROG} {name}"
    return parser


def _add_demo_arguments(parser: OneLineParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the tree of videos in")
    parser.add_argument(
        "--seed", type=number(int, 0, 2**32 - 1), metavar="N", default=0, help="draws identities and movements"
    )
    parser.add_argument(
        "--identities",
        type=number(int, 6, 1000),
        metavar="N",
        default=32,
        help="people, an even number: pairs make fakes",
    )
    parser.add_argument("--frames", type=number(int, 1, 10_000), metavar="N", default=12, help="frames per video")
    _add_workers_argument(parser)


def _add_source_arguments(parser: OneLineParser) -> None:
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
    _add_workers_argument(parser)


def _add_workers_argument(parser: OneLineParser) -> None:
    parser.add_argument(
        "--workers",
        type=number(int, 1, 1024),
        metavar="N",
        default=default_workers(),
        help="processes; the result doesn't depend on it",
    )


def _add_faces_arguments(parser: OneLineParser) -> None:
    _add_source_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Parquet table to write")


def _add_pack_arguments(parser: OneLineParser) -> None:
    _add_source_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="root folder; each quality becomes a folder in it"
    )
    parser.add_argument(
        "--qualities",
        type=_quality,
        metavar="Q",
        nargs="+",
        default=list(QUALITIES),
        help="MozJPEG qualities, 1 to 79 and 90 to 100; 'raw' is a set of lossless PNG",
    )
    parser.add_argument(
        "--faces", type=Path, metavar="FILE", help="table of faces; without it the face stage runs first"
    )
    parser.add_argument(
        "--splits",
        type=Path,
        metavar="DIR",
        help="folder with FF++'s train.json, val.json and test.json (default: SOURCE/splits, else drawn by identity)",
    )
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), metavar="N", default=0, help="of a drawn split")
    parser.add_argument("--size", type=number(int, 16, 4096), metavar="N", default=256, help="side of a crop, pixels")
    parser.add_argument(
        "--margin", type=number(float, 1, 4), metavar="N", default=1.3, help="side of a crop over the tight face"
    )
    parser.add_argument(
        "--shard-samples",
        type=number(int, 1, 1_000_000),
        metavar="N",
        default=1024,
        help="samples a tar is meant to have",
    )


def _quality(text: Any) -> Quality:
    try:
        quality = parse_quality(text)
        check_quality(quality)
        return quality
    except ValueError as error:
        raise SettingError(str(error)) from None
