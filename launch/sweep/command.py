"""The command line of a sweep."""

import json
from collections.abc import Sequence
from dataclasses import fields

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from datasets_shards.schema import parse_quality
from fdtrain.config import Config, UserError
from launch.sweep.config import SECTIONS, SweepConfig

SINGLE = {each.name for each in fields(Config)} - SECTIONS - {each.name for each in fields(SweepConfig)}
"""Keys of the training's configuration that stand in no section, such as `precision`, and are none of a sweep's own."""


def split_words(words: Sequence[str]) -> list[str]:
    """Gather what is meant for the trainings, such as `--data.root ROOT`, behind `--overrides`."""
    own: list[str] = []
    overrides: dict[str, str] = {}
    key = None
    for word in words:
        if key is not None:
            overrides[key], key = word, None
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        is_theirs = name in SINGLE or ("." in name and name.split(".")[0] in SECTIONS)
        if word.startswith("--") and is_theirs:
            if equals:
                overrides[name] = value
            else:
                key = name
        else:
            own.append(word)
    if key is not None:
        own.append(f"--{key}")  # for the parser to complain about
    return own + (["--overrides", json.dumps(overrides)] if overrides else [])


def add_arguments(parser: ArgumentParser) -> None:
    """Every setting of a sweep, a file of them, and the qualities."""
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of a sweep, such as configs/sweep.yaml.")
    parser.add_argument("--qualities", nargs="+", type=str, required=True, help="A search for each: 77 15, or raw.")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on with the sweep that was stopped or killed: what is finished is kept, the rest goes on.",
    )
    parser.add_argument(
        "--overrides",
        type=dict,
        default={},
        help="Keys of the trainings over those of `settings`. They may be written as for training: --data.root ROOT.",
    )
    parser.add_class_arguments(SweepConfig, None)


def run(arguments: Namespace) -> None:
    """Search for the best settings at each quality level, by Ray Tune."""
    own = {each.name for each in fields(SweepConfig)}
    config = SweepConfig(**{key: value for key, value in vars(arguments).items() if key in own})
    config.settings = config.settings | arguments.overrides
    config.validate()
    try:
        qualities = list(dict.fromkeys(map(parse_quality, arguments.qualities)))
    except ValueError as error:
        raise UserError(f"qualities: {error}") from None

    from launch.sweep.sweep import sweep

    sweep(config, qualities, arguments.resume)
