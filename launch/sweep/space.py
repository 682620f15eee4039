"""What is searched: the space as it stands in the YAML file, its parameters, and values out of them.

A space maps a key of the training's configuration to one of

    {uniform: [low, high]}      {loguniform: [low, high]}      {quniform: [low, high, step]}
    {int: [low, high]}          {choice: [a, b, c]}

both ends included. A bound may be another key of the space, or of the configuration: `{loguniform: [1e-7, optim.lr]}`.
The range of such a parameter differs from trial to trial, so the searcher sees the position in it, 0 to 1.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fdtrain.config import UserError

KINDS = {"uniform": 2, "loguniform": 2, "quniform": 3, "int": 2, "choice": None}
"""Kind -> number of its values; None where any number will do."""

MAX_CORNERS = 64


@dataclass(frozen=True)
class Parameter:
    """One dimension of the space.

    Args:
        key: Of the training's configuration.
        kind: One of `KINDS`.
        values: The choices, or low, high and (`quniform`) step; a bound that is text is another key.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def references(self) -> list[str]:
        """Keys that its bounds are taken from."""
        return [] if self.kind == "choice" else [value for value in self.values if isinstance(value, str)]

    def bounds(self, known: Mapping[str, Any]) -> tuple[float, float]:
        """Low and high, references looked up in `known`. Raises UserError for an empty range."""
        low, high = (self._number(known[value] if isinstance(value, str) else value) for value in self.values[:2])
        where = f"space.{self.key}: the range {_text(self.values[0], low)} to {_text(self.values[1], high)}"
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(f"{where} has no end; both bounds are numbers")
        if low >= high:
            raise UserError(f"{where} is empty; the first bound is the lower one")
        if self.kind == "loguniform" and low <= 0:
            raise UserError(f"{where} has no logarithm at {low:g}; begin above 0, or take uniform")
        return low, high

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"space.{self.key}: {value!r} is no number, and {self.kind} takes numbers")
        return float(value)

    def at(self, position: float, known: Mapping[str, Any]) -> Any:
        """The value at a position in the range, 0 (low) to 1 (high), of any kind but choice."""
        low, high = self.bounds(known)
        if self.kind == "loguniform":
            return _within(math.exp(math.log(low) + position * (math.log(high) - math.log(low))), low, high)
        if self.kind == "int":
            return min(int(high), int(low) + int(position * (int(high) - int(low) + 1)))
        if self.kind == "quniform":
            count = self.steps(known)
            return self.after(min(count, int(position * (count + 1))), known)
        return _within(low + position * (high - low), low, high)

    def steps(self, known: Mapping[str, Any]) -> int:
        """How many whole steps there are between the ends of a `quniform`."""
        low, high = self.bounds(known)
        return math.floor((high - low) / float(self.values[2]) + 1e-9)

    def after(self, count: int, known: Mapping[str, Any]) -> float:
        """The value so many steps above the low end of a `quniform`."""
        low, high = self.bounds(known)
        return _within(float(f"{low + count * float(self.values[2]):.12g}"), low, high)  # 0.3, not 0.30000000000000004

    def ends(self, known: Mapping[str, Any]) -> list[Any]:
        """All choices, or both ends of the range."""
        if self.kind == "choice":
            return list(self.values)
        return [self.at(0.0, known), self.at(1.0, known)]

    def within(self, known: Mapping[str, Any]) -> Any:
        """Some value between the ends."""
        return self.values[0] if self.kind == "choice" else self.at(0.382, known)


@dataclass(frozen=True)
class Space:
    """A search space.

    Args:
        parameters: Each behind those that its bounds refer to.
        fixed: Key -> value of the configuration that bounds refer to and that isn't searched.
    """

    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, Any]

    def distributions(self) -> dict[str, Any]:
        """Key -> Optuna's distribution, the same for every trial."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.kind == "choice":  # a list or a mapping is none of Optuna's values
                found[parameter.key] = CategoricalDistribution([json.dumps(value) for value in parameter.values])
            elif parameter.references:
                found[parameter.key] = FloatDistribution(0.0, 1.0)
            else:
                low, high = parameter.bounds({})
                if parameter.kind == "int":
                    found[parameter.key] = IntDistribution(int(low), int(high))
                elif parameter.kind == "quniform":
                    found[parameter.key] = IntDistribution(0, parameter.steps({}))
                else:
                    found[parameter.key] = FloatDistribution(low, high, log=parameter.kind == "loguniform")
        return found

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """What Optuna drew from `distributions` -> key and value of the configuration."""
        known = dict(self.fixed)
        for parameter in self.parameters:
            value = drawn[parameter.key]
            if parameter.kind == "choice":
                value = json.loads(value)
            elif parameter.references:
                value = parameter.at(value, known)
            elif parameter.kind == "quniform":
                value = parameter.after(value, known)
            known[parameter.key] = value
        return {parameter.key: known[parameter.key] for parameter in self.parameters}

    def corners(self, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Settings at the ends of all ranges and with every choice: all combinations where they are few, else some.

        The first of them, which have every choice and every end, are followed by one from within the ranges.
        """
        widths = [len(parameter.values) if parameter.kind == "choice" else 2 for parameter in self.parameters]
        places = self.diagonal()
        if math.prod(widths) <= MAX_CORNERS:
            places += itertools.product(*(range(width) for width in widths))
        else:
            draw = random.Random(seed)
            places += [tuple(draw.randrange(width) for width in widths) for _ in range(MAX_CORNERS)]
        for place in places:
            known = dict(self.fixed)
            for parameter, index in zip(self.parameters, place, strict=True):
                known[parameter.key] = parameter.within(known) if index is None else parameter.ends(known)[index]
            yield {parameter.key: known[parameter.key] for parameter in self.parameters}

    def diagonal(self) -> list[tuple[int | None, ...]]:
        """For the first corners, the number of each parameter's end or choice; None for a value within."""
        widths = [len(parameter.values) if parameter.kind == "choice" else 2 for parameter in self.parameters]
        turns: list[tuple[int | None, ...]] = [
            tuple(min(turn, width - 1) for width in widths) for turn in range(max(widths))
        ]
        return [*turns, (None,) * len(widths)]


def parse_space(text: Mapping[str, Any], config: Mapping[str, Any]) -> Space:
    """Read a space.

    Args:
        text: Key -> its range, as in the YAML file.
        config: Key -> value of the configuration that the trials have in common.

    Raises:
        UserError: no space at all, an unknown kind, an empty range, or a bound that refers to nothing.
    """
    if not text:
        raise UserError(
            "space: nothing is searched; give a range for a key, such as optim.lr: {loguniform: [1e-4, 1e-2]}"
        )
    parameters = {key: _parameter(key, value) for key, value in text.items()}
    fixed: dict[str, Any] = {}
    for parameter in parameters.values():
        for reference in parameter.references:
            if reference in parameters:
                continue
            if reference not in config:
                raise UserError(f"space.{parameter.key}: {reference!r} is neither a number nor a key; see --help")
            fixed[reference] = config[reference]
        if not any(reference in parameters for reference in parameter.references) and parameter.kind != "choice":
            parameter.bounds(fixed)
    space = Space(_in_order(parameters), fixed)
    for _ in space.corners():
        pass  # meets the empty ranges of those that refer to others
    return space


def _parameter(key: str, text: Any) -> Parameter:
    example = "{loguniform: [1e-4, 1e-2]}"
    if not isinstance(text, Mapping) or len(text) != 1:
        raise UserError(f"space.{key}: {text!r} is no range; write one of {', '.join(KINDS)}, such as {example}")
    kind, values = next(iter(text.items()))
    if kind not in KINDS:
        raise UserError(f"space.{key}: no kind of range is called {kind!r}; there are {', '.join(KINDS)}")
    if not isinstance(values, list | tuple):
        raise UserError(f"space.{key}: {kind} takes a list, not {values!r}; such as {example}")
    if kind == "choice":
        if not values:
            raise UserError(f"space.{key}: choice has nothing to choose from; list the values")
        try:
            words = {json.dumps(value) for value in values}
        except TypeError:  # YAML makes a date of 2026-11-28
            raise UserError(f"space.{key}: choice takes no date; put it in quotes") from None
        if len(words) < len(values):
            raise UserError(f"space.{key}: choice names one value twice; list each once")
        return Parameter(key, kind, tuple(values))
    if len(values) != KINDS[kind]:
        raise UserError(f"space.{key}: {kind} takes {KINDS[kind]} values, and here are {len(values)}")
    parameter = Parameter(key, kind, tuple(map(_as_number, values)))
    if kind == "int":
        for value in parameter.values:
            if not isinstance(value, str) and not (_is_number(value) and value == int(value)):
                raise UserError(f"space.{key}: {value!r} is no whole number, and int takes whole numbers")
    if kind == "quniform" and not (_is_number(parameter.values[2]) and parameter.values[2] > 0):
        raise UserError(f"space.{key}: the step {parameter.values[2]!r} is no positive number")
    return parameter


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _within(value: float, low: float, high: float) -> float:
    """Rounding must not take a value out of its range: the other end may be a limit of the training."""
    return min(high, max(low, value))


def _as_number(value: Any) -> Any:
    """YAML 1.1 takes `1e-4` for text, since it has no dot."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _in_order(parameters: Mapping[str, Parameter]) -> tuple[Parameter, ...]:
    placed: dict[str, Parameter] = {}
    while len(placed) < len(parameters):
        ready = [
            parameter
            for key, parameter in parameters.items()
            if key not in placed and all(name in placed or name not in parameters for name in parameter.references)
        ]
        if not ready:
            circle = ", ".join(key for key in parameters if key not in placed)
            raise UserError(f"space: the bounds of {circle} refer to each other in a circle; make one of them a number")
        placed |= {parameter.key: parameter for parameter in ready}
    return tuple(placed.values())


def _text(value: Any, number: float) -> str:
    return f"{value} ({number:g})" if isinstance(value, str) else f"{number:g}"
