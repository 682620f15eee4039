"""The command line: one parser for every command, and errors of one line.

`python -m fdtrain` trains. Another command is named first: `python -m fdtrain evaluate ...`.
"""

import difflib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from datasets_shards.schema import ShardSetError
from datasets_shards.yaml12 import use_for_parsers
from fdtrain import __version__
from fdtrain.commands import (
    doctor,
    evaluate,
    export,
    figures,
    import_weights,
    predict,
    register,
    report,
    router,
    sync,
    train,
)
from fdtrain.config import Config, HostError, UserError
from fdtrain.config.credentials import clean_environment

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
RANK_0_FIRST_S = 5.0
"""What the other ranks wait with a fault that rank 0 most likely has met as well."""


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code: 0, 1 (it failed), 2 (wrong arguments) or 130 (interrupted)."""
    arguments = list(argv)
    if not arguments and "RANK" not in os.environ:
        print(_overview(), file=sys.stderr)
        return USAGE
    if arguments[:1] == ["--version"]:
        print(f"fdtrain {__version__}")
        return 0
    if arguments[:1] in (["--help"], ["-h"]):
        print(f"{_overview()}\n\nEvery setting of a training:\n")
    name = "train"
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    prog = "python -m fdtrain" if name == "train" else f"python -m fdtrain {name}"
    if name not in COMMANDS:
        return _fail("python -m fdtrain", f"{name!r} is no command{did_you_mean(name, COMMANDS)}", USAGE)
    hint = "; --run.resume auto goes on from the last checkpoint" if name == "train" else ""
    return run_command(prog, COMMANDS[name], arguments, hint)


def run_command(prog: str, command: ModuleType, arguments: Sequence[str], hint: str = "") -> int:
    """Run one command and return its exit code, as `main`.

    Args:
        prog: How it was called, for messages.
        command: A module as those of `COMMANDS`.
        arguments: The words behind its name.
        hint: What to say of Ctrl-C.
    """

    def work() -> int:
        clean_environment()
        command.run(parse(prog, command, arguments))
        return 0

    return exit_code(prog, work, hint)


def exit_code(prog: str, work: Callable[[], int], hint: str = "") -> int:
    """Do some work, and print a fault of it as one line.

    Args:
        prog: How it was called.
        work: Gives its exit code.
        hint: What to say of Ctrl-C.
    """
    try:
        return work()
    except HostError as error:
        return _fail(prog, str(error), FAILURE)
    except UserError as error:
        return _fail(prog, str(error), USAGE)
    except (ShardSetError, FloatingPointError) as error:
        return _fail(prog, str(error), FAILURE)
    except OSError as error:  # a full disk, a file that may not be read
        place = f"{error.filename}: " if error.filename else ""
        return _fail(prog, f"{place}{error.strerror or error}", FAILURE)
    except KeyboardInterrupt:
        return _fail(prog, f"interrupted{hint}", INTERRUPTED)


def parse(prog: str, command: ModuleType, arguments: Sequence[str]) -> Namespace:
    """The arguments of a command, of the types that they should have. Raises UserError. Args: as of `run_command`."""
    parser = Parser(prog=prog, description=command.run.__doc__, exit_on_error=False)
    command.add_arguments(parser)
    return parser.read(arguments)


class _UsageError(Exception):
    pass


class Parser(ArgumentParser):
    """Says what is wrong with the words it is given in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        use_for_parsers()
        # By default `--train.epoch` would be taken for `--train.epochs`.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """What the parser calls; not for others."""
        raise _UsageError(message) from ex

    def read(self, words: Sequence[str]) -> Namespace:
        """What the words say. Raises UserError for a wrong key or type, or a file that can't be read."""
        try:
            parsed = self.parse_args(list(words))
            if parsed.get("config"):
                self._check_file(parsed)
            return self.instantiate(parsed)
        except _UsageError as error:
            raise UserError(explain(str(error), self, _named("config", words))) from None
        except UnicodeDecodeError:
            raise UserError(f"--config {_named('config', words)}: is no text; name a YAML file") from None

    def _check_file(self, parsed: Namespace) -> None:
        """Raise for what the parser passes over in a file: null where the command line allows none, and no section."""
        for section in self.groups or ():
            if not isinstance(value := parsed.get(section, Namespace()), Namespace):
                given = "null" if value is None else repr(value)
                raise UserError(f"{section}: got {given}, allowed is a section of keys; see --print_config")
        try:
            self.validate(parsed, skip_unset=False)
        except TypeError as error:
            raise _UsageError(str(error)) from None


def _named(option: str, words: Sequence[str]) -> str:
    """The value that an option has among words; the last one counts."""
    values = [word.partition("=")[2] for word in words if word.startswith(f"--{option}=")]
    values += [value for word, value in pairwise(words) if word == f"--{option}"]
    return values[-1] if values else ""


@cache
def _training_parser() -> Parser:
    parser = Parser(exit_on_error=False)
    train.add_arguments(parser)
    return parser


def training_config(words: Sequence[str]) -> Config:
    """What `python -m fdtrain WORDS` would train with, not validated. Raises UserError for a wrong key or type."""
    return train.config_of(_training_parser().read(words))


def explain(message: str, parser: ArgumentParser, config: str) -> str:
    """Turn a message of the parser into one line: the key, the value, what is allowed, the nearest right key.

    Args:
        message: The parser's.
        parser: What it knows.
        config: The file that it read; empty where none was given.
    """
    keys = _keys(parser)
    text = " ".join(message.split())
    if found := re.search(r"[Uu]nrecognized arguments: (\S+)", text):
        word = found[1]
        if not word.startswith("-"):
            return f"{word!r} is no option; every setting is written --key VALUE"
        key = word.lstrip("-").split("=")[0]
        return f"{key}: no such key{did_you_mean(key, keys)}"
    if found := re.search(r"Group '(\S+)' does not accept option '(\S+)'", text):
        key = f"{found[1]}.{found[2]}"
        return f"{key}: no such key{did_you_mean(key, keys)}"
    if found := re.search(r"(?:Key|Option|option) '(\S+)' (?:is not expected|is not accepted)", text):
        return f"{found[1]}: no such key{did_you_mean(found[1], keys)}"
    if found := re.search(r"Parser key \"(\S+)\": .*?Expected.*(?:Got|Given) value: (.*)$", text):
        allowed = re.findall(r"Expected an? (.+?)(?=\. Got value| - Expected| Given value)", text)
        given = "null" if found[2] == "None" else repr(found[2])
        return f"{found[1]}: got {given}, allowed is {' or '.join(map(_type_in_words, allowed))}"
    if text.startswith("Unexpected config:"):
        return f"--config {config}: holds no keys with values, such as 'seed: 1'"
    if found := re.search(r"Problems parsing config: (.*)", text):
        return f"--config {config}: not readable as YAML: {found[1]}"
    if found := re.search(r"Parser key \"config\": File does not exist: '(.+)'", text):
        return f"--config {found[1]}: no such file"
    if found := re.search(r"Parser key \"config\": Path is not a file: '(.+)'", text):
        return f"--config {found[1]}: is no file; name a YAML file"
    return text


def _keys(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if action.option_strings and action.dest != "help"]


def _type_in_words(text: str) -> str:
    """`<class 'int'>` -> "a whole number", `typing.Literal['a', 'b']` -> "a | b"."""
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return found[1].replace("'", "").replace(", ", " | ")
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "text",
        "NoneType": "null",
        "tuple": "a list, written as [1, 2]",
        "list": "a list, written as [1, 2]",
        "dict": "a mapping, written as {KEY: VALUE}",
    }
    name = text.removeprefix("<class '").removesuffix("'>")
    return words.get(name, name)


def did_you_mean(word: str, candidates: Sequence[str] | dict[str, Any]) -> str:
    """`; did you mean data.quality?`, or where nothing comes near, where to look; the end of a message."""
    names = list(candidates)
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if not match:  # the last part alone: `--quality` for `--data.quality`
        tails = {name.rsplit(".", 1)[-1]: name for name in names}
        match = [
            tails[tail] for tail in difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)
        ]
    return f"; did you mean {match[0]}?" if match else f"; see --help for all {len(names)}"


def _fail(prog: str, message: str, code: int) -> int:
    rank = os.environ.get("RANK")
    # A wrong argument is met by every rank, and rank 0 says so for all; a damaged sample or a full disk by some.
    for_all = code != FAILURE
    if for_all and rank not in (None, "0"):
        # torchrun ends the group with the first rank that leaves, which must not come before rank 0 has said it. Who is
        # still there then has met what rank 0 hasn't.
        time.sleep(RANK_0_FIRST_S)
    place = "" if rank is None or (for_all and rank == "0") else f"rank {rank} on {socket.gethostname()}: "
    print(f"{prog}: error: {place}{message}", file=sys.stderr)
    return code


def _first_line(command: ModuleType) -> str:
    return (command.run.__doc__ or "").splitlines()[0]


def _overview() -> str:
    commands = [f"  {name:<15} {_first_line(command)}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m fdtrain [COMMAND] --KEY VALUE ...",
            "",
            "Commands, train where none is named; each has a --help of its own:",
            *commands,
            "",
            "A training: python -m fdtrain --config configs/meso4.yaml --data.root ROOT --data.quality 77",
        ]
    )


COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "figures": figures,
    "report": report,
    "export": export,
    "register": register,
    "router": router,
    "import-weights": import_weights,
    "sync": sync,
    "doctor": doctor,
}
"""Each has `add_arguments(parser)` and `run(arguments)`, whose docstring is its help; it imports what is heavy."""
