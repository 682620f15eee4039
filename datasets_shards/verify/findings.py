"""What a check found wrong: lines by kind, of which only the first few are kept, so that any damage fits in memory."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

LINES_PER_KIND = 20


@dataclass
class Findings:
    """Problems by kind, such as "tar" or "image", in the order in which the kinds first came up.

    Args:
        lines: the first `LINES_PER_KIND` of each kind, one line each.
        counts: how many there are of each kind.
    """

    lines: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, line: str) -> None:
        """Note a problem; a name in it may be damaged itself, so what can't be printed is escaped."""
        self._add(kind, printable(line))

    def extend(self, other: "Findings") -> None:
        """Take over everything that `other` holds."""
        for kind, lines in other.lines.items():
            for line in lines:
                self._add(kind, line)
            self.counts[kind] += other.counts[kind] - len(lines)

    @property
    def total(self) -> int:
        """Number of problems, those without a line of their own included."""
        return self.counts.total()

    def report(self) -> Iterator[str]:
        """The lines, kind after kind; a kind with more problems than lines says how many more."""
        for kind, lines in self.lines.items():
            yield from lines
            if more := self.counts[kind] - len(lines):
                yield f"... and {more} more of this kind ({kind})"

    def _add(self, kind: str, line: str) -> None:
        self.counts[kind] += 1
        kept = self.lines.setdefault(kind, [])
        if len(kept) < LINES_PER_KIND:
            kept.append(line)


def printable(text: str) -> str:
    """`text` in one line, with control characters and undecodable bytes escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
