"""The cells of a study: one training for each combination of a model and the values of the axes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from datasets_shards.schema import parse_quality, quality_name
from datasets_shards.yaml12 import dump_yaml
from fdtrain.cli import did_you_mean, training_config
from fdtrain.config import Config, UserError, flatten_settings
from launch.study.settings import OWN_KEYS, TRAINING_KEYS, Study

MODEL, QUALITY, SEED = "model", "data.quality", "seed"


@dataclass(frozen=True)
class Cell:
    """One training.

    Args:
        name: Of its run folder, and in tables.
        place: Axis -> the name of the cell's value on it; the models are the first axis.
        words: What `python -m fdtrain` is told, but for the run folder.
        config: What those words come to.
    """

    name: str
    place: dict[str, str]
    words: tuple[str, ...]
    config: Config


class _Value(NamedTuple):
    name: str
    settings: dict[str, Any]
    file: str | None = None


def cells_of(study: Study, overrides: Mapping[str, Any], ranks: int = 1) -> list[Cell]:
    """All cells, the models outermost, the last axis changing fastest.

    Args:
        study: What is declared.
        overrides: Settings of every training that win over the study's.
        ranks: Processes of each training, which share its batch.

    Raises:
        UserError: a key, a file, a model or a value that there isn't, an empty axis, or two cells of one name.
    """
    common = _checked(study.settings, "settings")
    axes = {MODEL: list(_models(study)), **{key: list(_values(key, values)) for key, values in study.axes.items()}}
    _check_each_key_once(study, axes, overrides)
    cells: dict[str, Cell] = {}
    for combination in product(*axes.values()):
        place = {axis: value.name for axis, value in zip(axes, combination, strict=True)}
        name = "-".join(place.values())
        settings = dict(common)
        for value in combination:
            settings |= value.settings
        settings |= overrides
        words = [*(("--config", str(combination[0].file)) if combination[0].file else ())]
        for key, setting in settings.items():
            words += [f"--{key}", _word(setting)]
        if name in cells:
            raise UserError(
                f"two cells are called {name}: {_told(cells[name].place)} and {_told(place)}; name one else"
            )
        cells[name] = Cell(name, place, tuple(words), _config(name, words, ranks))
    return list(cells.values())


def _models(study: Study) -> Iterator[_Value]:
    for name, entry in study.models.items():
        key = f"models.{name}"
        _check_name(key, name)
        settings = dict(entry)
        file = settings.pop("config", None)
        if file is not None and not Path(str(file)).is_file():
            raise UserError(f"{key}.config: {file}: no such file; give one such as configs/meso4.yaml")
        yield _Value(name, _checked(settings, key), None if file is None else str(file))


def _values(axis: str, values: list[Any] | dict[str, Any]) -> Iterator[_Value]:
    key = f"axes.{axis}"
    if not values:
        raise UserError(f"{key}: is empty; give at least one value, or leave the axis away")
    if isinstance(values, dict):
        for name, value in values.items():
            _check_name(key, str(name))
            settings = value if isinstance(value, dict) and axis not in TRAINING_KEYS else {axis: value}
            yield _Value(str(name), _checked(settings, key if settings is not value else f"{key}.{name}"))
        return
    for value in values:
        settings = _checked({axis: value}, "axes")
        name = _name_of(axis, value)
        _check_name(key, name, " (write it as {NAME: VALUE})")
        yield _Value(name, settings)


def _name_of(axis: str, value: Any) -> str:
    """`q77`, `seed0`, `frames_per_video10`."""
    if axis == QUALITY:
        try:
            return quality_name(parse_quality(value))
        except ValueError as error:
            raise UserError(f"axes.{axis}: {error}") from None
    return f"{axis.rpartition('.')[2]}{'none' if value is None else value}"


def _check_name(key: str, name: str, remedy: str = "") -> None:
    if not re.fullmatch(r"\w[\w.+]*([-\w.+]*\w)?", name, re.ASCII):
        raise UserError(
            f"{key}: {name!r} can't be part of a folder's name; letters, digits, '.', '_' and '-' can{remedy}"
        )


def _checked(settings: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Settings by flat keys. Raises UserError for a key that no training has, or that is the study's own business."""
    flat = flatten_settings(settings)
    for key in flat:
        where = f"{place}.{key}" if place else key
        if key in OWN_KEYS:
            raise UserError(f"{where}: {OWN_KEYS[key]}; leave it out")
        if key not in TRAINING_KEYS:
            raise UserError(f"{where}: no such key{did_you_mean(key, TRAINING_KEYS)}")
    return flat


def _check_each_key_once(study: Study, axes: Mapping[str, list[_Value]], overrides: Mapping[str, Any]) -> None:
    """An axis whose values something else overrides would be several trainings of one kind under different names."""
    _checked(overrides, "")
    owner: dict[str, str] = {}
    for axis, values in axes.items():
        if axis == MODEL:
            continue
        for key in dict.fromkeys(key for value in values for key in value.settings):
            if key in overrides:
                raise UserError(f"{key}: is set by the axis {axis}; change that by --axes.{axis} VALUES")
            if key in owner:
                raise UserError(f"axes.{axis}: sets {key}, as axes.{owner[key]} does; only one axis can")
            owner[key] = axis
    for name, value in ((value.name, value) for value in axes[MODEL]):
        if both := [key for key in value.settings if key in owner]:
            raise UserError(f"models.{name}.{both[0]}: is set by the axis {owner[both[0]]}; leave it out here")


def _config(name: str, words: list[str], ranks: int) -> Config:
    from fdtrain.models import input_spec  # imports torch

    try:
        config = training_config(words)
        config.validate()
        input_spec(config.model.name, config.model.variant, config.multi_attention.backbone)
        config.accumulation(ranks)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return config


def _word(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, str):
        return value
    return dump_yaml(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _told(place: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in place.items())
