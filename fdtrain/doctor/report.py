"""What a check found, and how it is written for people and for programs."""

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from datasets_shards.errors import InputError
from datasets_shards.schema import ShardSetError
from fdtrain.config import UserError, first_line

Level = Literal["ok", "warning", "failure"]

WIDTH, COLUMN = 120, 17


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        level: "ok"; "warning": a run would start, and be slower or lose something; "failure": it would not run.
        what: What was looked at, a word or two.
        detail: What was found.
        remedy: What to do about it; empty where nothing is to be done.
        place: Rank and host, where several were looked at.
    """

    level: Level
    what: str
    detail: str
    remedy: str = ""
    place: str = ""

    @classmethod
    def parse(cls, line: str) -> Self:
        """A finding from `to_json`."""
        return cls(**json.loads(line))

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(asdict(self))


def from_error(what: str, error: Exception, level: Level = "failure") -> Finding:
    """A finding of an error whose message is written for users: one line, what is wrong, then what to do."""
    detail, _, remedy = first_line(error).rpartition("; ")
    return Finding(level, what, detail or remedy, remedy if detail else "")


def guarded(what: str, check: Callable[..., Iterable[Finding]], *arguments: Any) -> Iterator[Finding]:
    """What a check finds, as it comes; what it raises is a finding as well, and the checks after it are done too."""
    try:
        yield from check(*arguments)
    except (UserError, ShardSetError, InputError) as error:
        yield from_error(what, error)
    # A doctor that dies of the patient's disease is of no use: whatever a library raises here is the news.
    except Exception as error:  # noqa: BLE001
        detail = f"{type(error).__name__}: {first_line(error)}"
        yield Finding("failure", what, detail, "what was tried here doesn't work on this host; mend that first")


class Report:
    """Prints findings as they come: a line for each, its remedy on an indented line below."""

    def __init__(self) -> None:
        self._place = ""

    def print(self, finding: Finding) -> None:
        """Print one."""
        if finding.place != self._place:
            self._place = finding.place
            print(f"{finding.place}:")
        for line in render(finding):
            print(line, flush=True)


def render(finding: Finding) -> list[str]:
    """The lines of one finding."""
    begin = f"{finding.level:8}{finding.what:{COLUMN}} "
    lines = _wrapped(finding.detail, begin, " " * len(begin))
    if finding.remedy:
        lines += _wrapped(finding.remedy, " " * len(begin) + "-> ", " " * len(begin) + "   ")
    return lines


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - len(first), break_long_words=False, break_on_hyphens=False)
    return [(rest if number else first) + line for number, line in enumerate(lines)]


def as_json(findings: Sequence[Finding]) -> bytes:
    """The report as a file: `{"failures": 0, "warnings": 1, "findings": [{"level", "what", ...}, ...]}`."""
    content = {
        "failures": count(findings, "failure"),
        "warnings": count(findings, "warning"),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(content, indent=2).encode() + b"\n"


def count(findings: Iterable[Finding], level: Level) -> int:
    """How many are of a level."""
    return sum(finding.level == level for finding in findings)
