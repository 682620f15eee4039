"""What a report is made of: sections of text, figures, tables and what is missing. No layout here."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from datasets_shards.page import Picture


@dataclass(frozen=True)
class Missing:
    """What can't be shown.

    Args:
        reason: Why, and what to do for it; a sentence without the full stop.
    """

    reason: str


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, or a mean with its standard deviation.

    Args:
        value: Finite.
        low: Lower end; None where no interval is known.
        high: Upper end, likewise.
        deviation: Of what `value` is the mean of; None where it is no mean, or of one number.
    """

    value: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None

    @property
    def text(self) -> str:
        """Value and interval, such as `0.9567 (0.9410 to 0.9702)`."""
        return f"{self.value:.4f}" + (f" ({self.interval})" if self.interval else "")

    @property
    def interval(self) -> str:
        """`0.9410 to 0.9702`, or `± 0.0123` of a mean; empty where neither is known."""
        if self.deviation is not None:
            return f"± {self.deviation:.4f}"
        return "" if self.low is None or self.high is None else f"{self.low:.4f} to {self.high:.4f}"


@dataclass(frozen=True)
class Gain(Estimate):
    """A difference of two numbers, which is shown with its sign.

    Args:
        p: Of no difference, as of `PairedDifference`; None where it isn't known.
        is_clear: Whether it holds among all comparisons of its table: see `holm`.
    """

    p: float | None = None
    is_clear: bool = False

    @property
    def text(self) -> str:
        """As of `Estimate`, with signs."""
        return f"{self.value:+.4f}" + (f" ({self.interval})" if self.interval else "")

    @property
    def interval(self) -> str:
        """As of `Estimate`, with signs."""
        if self.deviation is not None:
            return f"± {self.deviation:.4f}"
        return "" if self.low is None or self.high is None else f"{self.low:+.4f} to {self.high:+.4f}"


Cell = Estimate | Missing | str


@dataclass(frozen=True)
class Row:
    """A row of a table: what it is of, and a cell for each column after the first."""

    head: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Block:
    """Rows under a heading of their own; without one where it is empty."""

    title: str
    rows: Sequence[Row]


def holm(blocks: Sequence[Block], level: float = 0.05) -> tuple[list[Block], str]:
    """Mark the gains of a table that hold among all of its comparisons, and say how many there are.

    Holm (1979), "A simple sequentially rejective multiple test procedure": the chance that any mark is wrong stays
    below `level`, where each interval by itself is wrong in one of twenty comparisons.

    Returns:
        The blocks, and a sentence for the caption; an empty one where there is nothing to compare.
    """
    cells = [cell for block in blocks for row in block.rows for cell in row.cells]
    known = sorted(cell.p for cell in cells if isinstance(cell, Gain) and cell.p is not None)
    if not known:
        return list(blocks), ""
    passed = takewhile(lambda each: each[1] <= level / (len(known) - each[0]), enumerate(known))
    largest = max((p for _, p in passed), default=-1.0)

    def mark(cell: Cell) -> Cell:
        if isinstance(cell, Gain) and cell.p is not None and cell.p <= largest:
            return replace(cell, is_clear=True)
        return cell

    def marked(block: Block) -> Block:
        return Block(block.title, [Row(row.head, [mark(cell) for cell in row.cells]) for row in block.rows])

    sentence = f" Bold ones of its {len(known)} gains hold at {level:.0%} after Holm's correction for that many."
    return [marked(block) for block in blocks], sentence


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        file: Name of its CSV file.
        caption: What its numbers are.
        columns: Headings, the first one that of the rows' heads.
        blocks: Its rows.
    """

    file: str
    caption: str
    columns: Sequence[str]
    blocks: Sequence[Block]

    def csv(self) -> bytes:
        """As CSV: numbers in full, what goes with them in columns of their own, reasons in the last column."""
        rows = [row for block in self.blocks for row in block.rows]
        ends = [_ends([row.cells[i] for row in rows]) for i in range(len(self.columns) - 1)]
        head = ["block", self.columns[0]]
        for name, known in zip(self.columns[1:], ends, strict=True):
            head += [name, *(f"{name} {end}" for end in known)]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*head, "missing"])
        for block in self.blocks:
            for row in block.rows:
                values: list[str] = []
                for cell, known in zip(row.cells, ends, strict=True):
                    values += _values(cell, known)
                reasons = dict.fromkeys(
                    f"{name}: {cell.reason}"
                    for name, cell in zip(self.columns[1:], row.cells, strict=True)
                    if isinstance(cell, Missing)
                )
                writer.writerow([block.title, row.head, *values, "; ".join(reasons)])
        return buffer.getvalue().encode()


_ENDS = {"low": "low", "high": "high", "sd": "deviation"}
"""What goes with a number: heading of its column -> attribute."""


def _ends(cells: Sequence[Cell]) -> list[str]:
    """Those that any of these cells has."""
    numbers = [cell for cell in cells if isinstance(cell, Estimate)]
    return [end for end, name in _ENDS.items() if any(getattr(cell, name) is not None for cell in numbers)]


def _values(cell: Cell, ends: Sequence[str]) -> list[str]:
    if isinstance(cell, Estimate):
        numbers = [cell.value, *(getattr(cell, _ENDS[end]) for end in ends)]
        return ["" if number is None else f"{number:.6g}" for number in numbers]
    return ["" if isinstance(cell, Missing) else cell, *("" for _ in ends)]


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side, which are in the page alone.

    Args:
        title: What they have in common.
        pictures: At least one.
    """

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Facts:
    """Terms and what is to say of each.

    Args:
        title: Heading.
        items: Term -> text.
        folded: A text that is long and of interest to few, in a box that opens.
    """

    title: str
    items: dict[str, str]
    folded: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


Part = str | Heading | Picture | Table | Gallery | Facts | Missing


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        place: Its id in the page.
        title: Its heading.
        parts: In order; a plain text is a paragraph.
    """

    place: str
    title: str
    parts: list[Part] = field(default_factory=list)

    def missing(self) -> Iterator[str]:
        """The reasons of what it can't show, each once."""
        reasons: dict[str, None] = {}
        for part in self.parts:
            if isinstance(part, Missing):
                reasons[part.reason] = None
            elif isinstance(part, Table):
                cells = (cell for block in part.blocks for row in block.rows for cell in row.cells)
                reasons |= {cell.reason: None for cell in cells if isinstance(cell, Missing)}
        yield from reasons


def estimate(metrics: dict[str, float | None], name: str) -> Estimate | None:
    """A metric of that name, with its interval where that is known; None where it isn't defined.

    Args:
        metrics: As metrics.json has them.
        name: `<split>/<frame|video>/<metric>[/<method>]`.
    """
    value = metrics.get(name)
    if value is None or not math.isfinite(value):
        return None
    split, level, metric, *method = name.split("/")
    low, high = (metrics.get("/".join([split, level, f"{metric}_{end}", *method])) for end in ("low", "high"))
    return Estimate(value) if low is None or high is None else Estimate(value, low, high)
