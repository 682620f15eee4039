"""What a setting may be, and the error for what it may not."""

from collections.abc import Mapping


class UserError(ValueError):
    """Something that the user can mend: the message is one line with the key or file, the fault and the remedy."""


class HostError(UserError):
    """A UserError that this host alone may have met, such as a full disk: every rank that meets it says so."""


class TransientError(UserError):
    """A UserError that all ranks meet together and that another attempt with the same settings may get over.

    A disk that was full is one, or a folder that another run was still leaving.
    """


def in_range(key: str, value: float | None, low: float, high: float = float("inf")) -> None:
    """Raise UserError for a number that isn't in `[low, high]`; None stands for a default and passes."""
    if value is not None and not low <= value <= high:
        allowed = f"at least {low}" if high == float("inf") else f"{low} to {high}"
        raise UserError(f"{key}: {value} is out of range; allowed is {allowed}")


def all_in_range(values: Mapping[str, float | None], low: float, high: float = float("inf")) -> None:
    """`in_range` for several settings."""
    for key, value in values.items():
        in_range(key, value, low, high)


def shares(values: Mapping[str, float | None]) -> None:
    """Raise UserError for the first number that isn't in `[0, 1)`; None passes."""
    for key, value in values.items():
        if value is not None and not 0 <= value < 1:
            raise UserError(f"{key}: {value} is out of range; allowed are 0 up to, not including, 1")


def without_effect(key: str, value: object, default: object, remedy: str) -> None:
    """Raise UserError for a setting that was changed although nothing reads it."""
    if value != default:
        raise UserError(f"{key}: {value} has no effect here; {remedy}, or leave it at {default}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, of at most 500 characters; its name where it has none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:500]
