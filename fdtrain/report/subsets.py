"""The metrics on the parts of FF++ that papers report: whole at each compression, and one manipulation at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from datasets_shards.schema import quality_name
from fdtrain.report.compare import Level, gain
from fdtrain.report.content import Block, Cell, Gain, Missing, Part, Row, Section, Table, estimate, holm
from fdtrain.report.references import Reference
from fdtrain.report.runs import COMPRESSIONS, EVALUATIONS, Result, Run

WHOLE = {f"FF-{compression}": compression for compression in COMPRESSIONS}
METHODS = {
    "DF": "Deepfakes",
    "F2F": "Face2Face",
    "FS": "FaceSwap",
    "NT": "NeuralTextures",
    "FSh": "FaceShifter",
    "DFD": "DeepFakeDetection",
}
COLUMNS = (*WHOLE, *METHODS)
ALWAYS = ("FF-c23", "FF-c40", "DF", "F2F", "FS", "NT")
"""Columns that are there whatever the runs have; the others where a run has a number for them."""

MAX_PAIRED = 4
"""Runs of which each is compared with each other; more of them are compared with the first one."""

TABLES: dict[str, tuple[str, Level]] = {"1a": ("auc", "frame"), "1b": ("auc", "video"), "2": ("acc", "frame")}
TITLES = {"auc": "AUC", "acc": "ACC at a threshold of 0.5"}
LEVELS = {"frame": "per frame", "video": "per video (the mean of its frames' scores)"}


@dataclass(frozen=True)
class Place:
    """Where a number of the table is: a result, and a method of it or all of them."""

    result: Result
    method: str

    def name(self, level: Level, metric: str) -> str:
        return f"test/{level}/{metric}" + (f"/{self.method}" if self.method else "")


def subset_section(runs: Sequence[Run], references: Sequence[Reference]) -> Section:
    """Table 1 (AUC per frame and per video) and Table 2 (ACC), with the gains and what was published."""
    parts: list[Part] = [
        "FF is FaceForensics++'s whole test split at one compression of the source videos; DF, F2F, FS and NT are one "
        "manipulation against the real videos of its dataset, at the compression of the run's own data. The test split "
        "is read once, with the model that validation chose."
    ]
    for number, (metric, level) in TABLES.items():
        published = references if level == "frame" else []
        parts.append(subset_table(f"table-{number}", f"Table {number}", runs, published, metric, level))
    if references:
        parts.append(
            "Published figures were measured by their authors on other crops, frames and training data, without the "
            "JPEG step of these runs: they tell what to expect, and no difference to them is a gain."
        )
        parts += list(dict.fromkeys(f"Published: {one.citation}. {one.protocol}." for one in references))
    return Section("subsets", "AUC per subset", parts)


def subset_table(
    file: str, name: str, runs: Sequence[Run], references: Sequence[Reference], metric: str, level: Level
) -> Table:
    """One of the tables; the rows of `references` come last."""
    columns = [column for column in COLUMNS if column in ALWAYS or any(has(run, column) for run in runs)]
    own = [
        Row(run.label, [_source(run), *(number_on(run, column, metric, level) for column in columns)]) for run in runs
    ]
    blocks = [Block("These runs", own)]
    if gains := [_gains(one, other, columns, metric, level) for one, other in _pairs(runs)]:
        blocks.append(Block("Gain of one over another, of the same samples", gains))
    known = [one for one in references if metric in one.values]
    if known:
        rows = [Row(one.name, ["", *(_published(one, column, metric) for column in columns)]) for one in known]
        blocks.append(Block("Published (other crops and protocols, see below)", rows))
    blocks, comparisons = holm(blocks)
    caption = f"{name}. {TITLES[metric]} {LEVELS[level]} on the test split, with 95 % intervals where they are known."
    caption += comparisons
    if len(runs) > MAX_PAIRED:
        caption += f" With more than {MAX_PAIRED} runs, gains are those over the first one."
    if any(_differ(one, other) for one, other in _pairs(runs)):
        caption += " Of runs of different qualities, each is tested on the images of its own."
    return Table(f"{file}.csv", caption, ["run", "data", *columns], blocks)


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    return list(combinations(runs, 2)) if len(runs) <= MAX_PAIRED else [(runs[0], other) for other in runs[1:]]


def _source(run: Run) -> str:
    compression = "unknown" if isinstance(run.compression, Missing) else run.compression
    return f"{compression}, {quality_name(run.quality)}"


def place_of(run: Run, column: str) -> Place | Missing:
    """Where the numbers of a column are, such as "FF-c40" or "DF"."""
    own = run.result("test")
    if isinstance(own, Missing):
        return own
    if column in METHODS:
        method = METHODS[column]
        if f"test/frame/auc/{method}" not in own.metrics:
            return Missing(f"{run.letter}: its test split has no {method}")
        return Place(own, method)
    wanted = WHOLE[column]
    if own.compression == wanted:
        return Place(own, "")
    if isinstance(own.compression, Missing):
        return own.compression
    others = [result for result in run.evaluations if result.compression == wanted]
    for result in others:
        if result.quality == own.quality:
            return Place(result, "")
    if others:
        return Missing(f"{run.letter}: evaluated on {wanted} at {others[0].quality}, which isn't its own quality")
    unclear = [result.compression for result in run.evaluations if isinstance(result.compression, Missing)]
    return next(iter(unclear), None) or Missing(
        f"Not evaluated on {wanted} videos: run evaluate --model RUN --data.root ROOT --data.quality "
        f"{own.quality.removeprefix('q')} --out RUN/{EVALUATIONS}/{wanted}.json with a root packed from {wanted}"
    )


def has(run: Run, column: str) -> bool:
    """Whether the run has numbers for a column."""
    return isinstance(place_of(run, column), Place)


def number_on(run: Run, column: str, metric: str, level: Level) -> Cell:
    """A metric of a run in a column."""
    place = place_of(run, column)
    if isinstance(place, Missing):
        return place
    return estimate(place.result.metrics, place.name(level, metric)) or Missing(
        f"{run.letter}: {place.name(level, metric)} is undefined, since the split has one class only"
    )


def _gains(first: Run, second: Run, columns: Sequence[str], metric: str, level: Level) -> Row:
    cells = [gain_on(first, second, column, metric, level) for column in columns]
    names = f"{second.letter} over {first.letter}"
    return Row(f"{names}, each at its own quality" if _differ(first, second) else names, ["", *cells])


def _differ(first: Run, second: Run) -> bool:
    """Whether the same samples are other images: all that `place_of` finds is of the run's own quality."""
    return first.quality != second.quality


def gain_on(first: Run, second: Run, column: str, metric: str, level: Level) -> Gain | Missing:
    """What the second run has over the first in a column."""
    places = [place_of(run, column) for run in (first, second)]
    for place in places:
        if isinstance(place, Missing):
            return place
    one, other = (place for place in places if isinstance(place, Place))
    names = f"{second.letter} over {first.letter}"
    return gain(names, one.result, other.result, level=level, metric=metric, method=one.method)


def _published(reference: Reference, column: str, metric: str) -> Cell:
    value = reference.values[metric].get(column)
    return f"{value:.4f}" if value is not None else Missing("Not published in that source")
