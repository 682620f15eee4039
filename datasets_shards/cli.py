"""The command line of the offline stage: a parser whose every complaint is one line."""

import argparse
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

import datasets_shards
from datasets_shards.commands import demo, faces, fidelity, pack, unpack, verify
from datasets_shards.errors import nearest
from datasets_shards.yaml12 import YAMLError, load_yaml, use_for_parsers

PROG = "python -m datasets_shards"
USAGE_ERROR = 2

COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "faces": faces,
    "pack": pack,
    "verify": verify,
    "fidelity": fidelity,
    "unpack": unpack,
}


class OneLineParser(ArgumentParser):
    """Ends a wrong command line with exit code 2 and one line on stderr.

    The line names the flag, the value, what is allowed and the nearest right flag.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        use_for_parsers()
        super().__init__(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the complaint and exit."""
        print(f"{self.prog}: error: {self._explain(message)}", file=sys.stderr)
        sys.exit(USAGE_ERROR)

    def parse_args(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Parse the words of a command line, and look at what its configuration files hold."""
        words = list(sys.argv[1:] if args is None else args)
        commands = next((a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)), {})
        if words and words[0] in commands:
            for word, value in pairwise([*words, ""]):
                if word == "--config" or word.startswith("--config="):
                    commands[words[0]].check_config(Path(word.partition("=")[2] or value))
        return super().parse_args(args, **options)

    def check_config(self, path: Path) -> None:
        """End where a file's values have forms that jsonargparse takes for others, or fails on with a traceback."""
        try:
            content = load_yaml(path.read_bytes())
        except (OSError, YAMLError):
            return  # which it says well itself
        if not isinstance(content, dict):
            self.error(f"--config {path}: not a list of keys and values such as 'seed: 1'")
        groups = {action.dest.partition(".")[0] for action in self._actions if "." in action.dest}
        for key, value in content.items():
            action = next((action for action in self._actions if action.dest == key), None)
            inner = {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {}
            for name, each in ({key: value} | inner).items():
                if each is None:
                    self.error(f"--config {path}: {name} has no value; give one, or leave the key away")
            if key in groups and not isinstance(value, dict):
                keys = ", ".join(a.dest.partition(".")[2] for a in self._actions if a.dest.startswith(f"{key}."))
                self.error(f"--config {path}: {key} {value!r} is no group of keys: {keys}")
            if action is not None and action.nargs in ("+", "*") and not isinstance(value, list):
                self.error(f"--config {path}: {key} wants a list, such as [{value}]")

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
        if line.startswith('expected "command" to be one of'):
            return f"give a command: {', '.join(COMMANDS)}"
        if match := re.match(r"the following arguments are required: (.*)", line):
            names = [name.rpartition(".") for name in match[1].split(", ")]
            flags = [(f"--{name.replace('_', '-')}", name) for _, _, name in names]
            known = self.flags(names[0][0] or None)
            missing = [flag if flag in known else name for flag, name in flags]  # a name alone is a positional's
            return f"missing {', '.join(missing)}; see {' '.join([self.prog, names[0][0]]).strip()} --help"
        if match := re.match(r'Parser key "([\w.]+)": ?Expected a <class \'bool\'>. Got value: (.*)', line):
            return f"--{match[1].replace('_', '-')}: {match[2]} is neither true nor false"
        if match := re.match(r'Parser key "([\w.]+)": ?(.*)', line):
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


def build_parser() -> OneLineParser:
    """The parser of all commands: `command` and, under its name, its flags."""
    parser = OneLineParser(
        prog=PROG, description=datasets_shards.__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"datasets_shards {datasets_shards.__version__}")
    commands = parser.add_subcommands(required=True, dest="command")
    for name, module in COMMANDS.items():
        summary = (module.run.__doc__ or "").strip()
        command = OneLineParser(description=summary, allow_abbrev=False, formatter_class=HelpFormatter)
        module.add_arguments(command)
        commands.add_subcommand(name, command, help=summary.splitlines()[0])
        command.prog = f"{PROG} {name}"
    return parser
