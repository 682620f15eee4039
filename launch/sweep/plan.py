"""What the trials of a sweep have in common, and the configuration of each: an ordinary training's, and checked so."""

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from datasets_shards.schema import Quality, quality_name
from fdtrain.cli import training_config
from fdtrain.config import NO_OTHER_MODEL, Config, UserError, flatten, flatten_settings
from launch.sweep.config import SECTIONS, SweepConfig
from launch.sweep.space import Space, parse_space

RESERVED = {
    "run.dir": "each trial has its own",
    "run.resume": "trials go on by themselves",
    "data.quality": "it is what --qualities gives",
    "tracking.parent": "it is the sweep's",
    "train.test": "the best trial's model alone meets the test split",
    "tracking.register": "the best trial's model is registered, by the sweep's own setting register",
}
"""Keys that are the sweep's own, and why."""

CONTEST_SHARE = 0.5
"""`data.contest_share` of trials where it isn't given."""

COUNTED = "trials are compared epoch by epoch, so it is one for all"
NOT_SEARCHED = {
    "train.epochs": COUNTED,
    "train.max_steps": COUNTED,
    "train.max_minutes": COUNTED,
    "data.contest_share": "trials are compared on the same people, so it is one for all",
    "data.root": "trials on different data can't be compared, so it is one for all",
    "tracking.uri": "the trials of a sweep are recorded in one place",
}
"""Keys that all trials share, and why."""


@dataclass(frozen=True)
class Plan:
    """A sweep over one quality.

    Args:
        sweep: Its settings.
        quality: Of all trials.
        space: What is searched.
        base: What all trials have in common, resolved.
        folder: Of this quality's search.
    """

    sweep: SweepConfig
    quality: Quality
    space: Space
    base: Config
    folder: Path

    @property
    def group(self) -> str:
        """Name of the MLflow run that the trials hang under."""
        return f"{self.folder.parent.name}-{quality_name(self.quality)}"

    @property
    def contest_share(self) -> float:
        """The share of validation people who don't choose the best trial, but judge it against the champion."""
        share = self.base.data.contest_share
        return CONTEST_SHARE if share is None else share

    def trial_folder(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.folder / "trials" / f"trial-{number:03d}"

    def trial_words(self, number: int, settings: Mapping[str, Any]) -> list[str]:
        """A trial's training as words for its command line."""
        own: dict[str, Any] = {
            "data.quality": self.quality,
            "run.dir": str(self.trial_folder(number)),
            "run.resume": "auto",
            "tracking.uri": self.base.tracking.uri,
            "tracking.register": False,
            "train.test": False,
        }
        if self.base.tracking.enabled:
            own["tracking.parent"] = self.group
        own["data.root"] = self.base.data.root
        own["data.contest_share"] = self.contest_share
        given = {"loader.threads": self.sweep.cpus_per_worker} if self.base.loader.threads is None else {}
        return base_words(self.sweep) + words_of(given | dict(settings) | own)


def make_plan(sweep: SweepConfig, quality: Quality) -> Plan:
    """Check base, settings and space together.

    Raises:
        UserError: a key is unknown or isn't to be set here, a range is empty, or the training refuses some of it.
    """
    sweep = replace(sweep, settings=flatten_settings(sweep.settings))
    for where, keys in (("settings", sweep.settings), ("space", sweep.space)):
        for key in keys:
            if key in RESERVED:
                raise UserError(f"{where}.{key}: {RESERVED[key]}; leave it out")
            if where == "space" and key in NOT_SEARCHED:
                raise UserError(f"space.{key}: {NOT_SEARCHED[key]}: settings.{key}")
            if where == "space" and key in SECTIONS:
                raise UserError(f"space.{key}: is a section; search its keys, such as optim.lr of optim")
    if both := sorted(sweep.settings.keys() & sweep.space.keys()):
        raise UserError(f"space.{both[0]}: it stands under settings too; leave one of them out")
    base = training_config(base_words(sweep) + words_of({"data.quality": quality}))
    base.validate()
    if not base.data.root:
        raise UserError("data.root: not set; give --data.root ROOT, or settings: {data.root: ROOT}")
    if base.train.max_minutes is not None:
        raise UserError(
            f"train.max_minutes: {base.train.max_minutes:g} would end trials that are not done, which are compared "
            "epoch by epoch; set it to null, and give train.epochs"
        )
    if "://" not in base.data.root:
        base.data.root = str(Path(base.data.root).absolute())  # on a node, Ray's processes begin elsewhere
    base.tracking.uri = _whole_uri(base.tracking.uri)
    if sweep.scheduler.kind == "asha" and sweep.scheduler.grace_epochs > base.train.epochs:
        raise UserError(
            f"scheduler.grace_epochs: {sweep.scheduler.grace_epochs} is more than the {base.train.epochs} epochs of a "
            "trial (train.epochs); lower it, or take scheduler.kind: none"
        )
    known = flatten(base.to_dict())
    space = parse_space(sweep.space, known)
    model = base.model.name.replace("/", "-")
    folder = Path(sweep.storage).absolute() / (sweep.name or f"{model}-sweep") / quality_name(quality)
    plan = Plan(sweep, quality, space, base, folder)
    _check_corners(plan)
    return plan


def _check_corners(plan: Plan) -> None:
    """Try the ends of all ranges as a training would; the parser, which takes its time, on the first of them alone."""
    typed: dict[tuple[str, str], Any] = {}
    parsed = len(plan.space.diagonal())
    config = plan.base
    for turn, settings in enumerate(plan.space.corners(plan.sweep.seed)):
        try:
            if turn < parsed:
                config = training_config(plan.trial_words(0, settings))
                typed |= {(key, json.dumps(value)): get(config, key) for key, value in settings.items()}
            else:
                config = copy.deepcopy(config)
                for key, value in settings.items():
                    put(config, key, typed.get((key, json.dumps(value)), value))
            config.validate()
            config.accumulation(plan.sweep.workers)
        except UserError as error:
            if re.split(r"[:\[]", str(error))[0] in settings:
                raise UserError(f"space.{error}") from None
            drawn = ", ".join(f"{key} {value}" for key, value in settings.items())
            raise UserError(f"space: with {drawn}: {error}") from None


def get(config: Config, key: str) -> Any:
    """`get(config, "optim.lr")` is `config.optim.lr`."""
    return reduce(getattr, key.split("."), config)


def put(config: Config, key: str, value: Any) -> None:
    """`put(config, "optim.lr", 0.1)` sets `config.optim.lr`."""
    *sections, name = key.split(".")
    setattr(reduce(getattr, sections, config), name, value)


def base_words(sweep: SweepConfig) -> list[str]:
    """The base and the settings over it."""
    return ["--config", str(Path(sweep.base).absolute()), *words_of(sweep.settings)]


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """`{"optim.lr": 0.1}` -> `["--optim.lr=0.1"]`; what is nested in the YAML file is written with dots."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def _whole_uri(configured: str) -> str:
    """The tracking URI in force, as every node and folder may use it."""
    from fdtrain.tracking.client import lasting_uri, tracking_uri

    return lasting_uri(tracking_uri(configured))


def settings_of(plan: Plan) -> dict[str, Any]:
    """What makes a sweep this one and no other: a sweep that goes on keeps it."""
    return _settings_of(plan.sweep, plan.base) | {"settings.data.contest_share": plan.contest_share}


def settings_before(known: Mapping[str, Any]) -> dict[str, Any]:
    """Complete what a sweep was searched with: a key that its release didn't have stood at what is its default now."""
    settings: dict[str, Any] = _settings_of(SweepConfig(), Config()) | {"settings.data.contest_share": 0.0}
    settings |= known
    return {key: value for key, value in settings.items() if not _makes_no_other(key)}


def _makes_no_other(key: str) -> bool:
    return key.startswith(tuple(f"settings.{beginning}" for beginning in NO_OTHER_MODEL))


def _settings_of(sweep: SweepConfig, base: Config) -> dict[str, Any]:
    keys = ("metric", "mode", "space", "searcher", "scheduler", "workers", "seed")
    own = asdict(sweep)
    settings = {f"settings.{key}": value for key, value in flatten(base.to_dict()).items()}  # `seed` is a key of both
    settings = {key: value for key, value in settings.items() if not _makes_no_other(key)}
    return flatten({key: own[key] for key in keys if key != "space"}) | {"space": own["space"]} | settings
