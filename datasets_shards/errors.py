"""Mistakes of a person or of their data, as opposed to defects of this program."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something given to the offline stage can't be used.

    The message is one line that names the file or the setting, says what is wrong and what to do; the command line
    shows it as it is, without a traceback.
    """


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The entry of `known` that `word` was most likely meant to be, or None where nothing comes near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def first_few(names: Iterable[str], limit: int = 5) -> str:
    """A few names for one line of a message: "a, b, c and 4 more"."""
    words = list(names)
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
