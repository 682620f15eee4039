"""The cells of a study, what is missing of them, and the means over their seeds."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fdtrain.config import UserError
from fdtrain.report import STUDY_FORMAT
from fdtrain.report.compare import Level
from fdtrain.report.content import Block, Cell, Estimate, Gain, Missing, Row, Section, Table, estimate, holm
from fdtrain.report.matrix import read_matrix
from fdtrain.report.runs import Result, Run
from fdtrain.report.subsets import ALWAYS, COLUMNS, TITLES, gain_on, has, number_on

MODEL = "model"
SHOWN: tuple[tuple[Level, str, str], ...] = (
    ("video", "auc", "AUC per video"),
    ("frame", "auc", "AUC per frame"),
    ("video", "acc", "ACC per video"),
)


@dataclass(frozen=True)
class StudyCell:
    """A training that a study declares.

    Args:
        name: Its name.
        place: Axis -> the name of its value there; `model` is the first axis.
        run: Its run among those of the report, or why there is none.
    """

    name: str
    place: dict[str, str]
    run: Run | Missing


@dataclass(frozen=True)
class Study:
    """What a study declares.

    Args:
        name: Of the study.
        baseline: The model that gains are over.
        seed: The axis over which means are taken.
        cells: In the order of the grid.
    """

    name: str
    baseline: str
    seed: str
    cells: list[StudyCell]

    @property
    def axes(self) -> list[str]:
        """Those of the grid."""
        return list(self.cells[0].place)

    def groups(self) -> dict[tuple[str, ...], list[StudyCell]]:
        """Cells that differ in nothing but the seed, by their values on the other axes."""
        found: dict[tuple[str, ...], list[StudyCell]] = {}
        for cell in self.cells:
            key = tuple(value for axis, value in cell.place.items() if axis != self.seed)
            found.setdefault(key, []).append(cell)
        return found


def read_study(path: Path, runs: Sequence[Run]) -> Study:
    """What launch.study wrote: `{format, name, baseline, seed, cells: [{name, run, place, missing}]}`.

    Raises:
        UserError: the file is something else.
    """
    by_folder = {run.path.resolve(): run for run in runs}
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != STUDY_FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        cells = [_cell(entry, by_folder) for entry in content["cells"]]
        if not cells:
            raise ValueError("it has no cells")
        return Study(content["name"], content["baseline"], content["seed"], cells)
    except OSError as error:
        raise UserError(f"study: {path} can't be read ({error.strerror}); name a study.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"study: {path} is no study.json that launch.study has written; name another file") from error


def _cell(entry: Mapping[str, Any], runs: Mapping[Path, Run]) -> StudyCell:
    name, reason = entry["name"], entry["missing"]
    run: Run | Missing | None = None if reason else runs.get(Path(entry["run"]).resolve())
    return StudyCell(name, dict(entry["place"]), run or Missing(f"{name}: {reason or 'it is none of the runs given'}"))


def study_section(study: Study, matrices: Sequence[Path]) -> Section:
    """Every cell, then the means over the seeds on the subsets of FF++, with their gains, and those of the matrices."""
    section = Section("study", f"Study {study.name}")
    section.parts.append(_cells_table(study))
    groups = study.groups()
    if all(isinstance(cell.run, Missing) for cell in study.cells):
        return section
    section.parts.append(
        f"Cells that differ in the {study.seed} alone are taken together: mean and standard deviation over those that "
        f"there are. Gains are over {study.baseline}, with all else the same: of one {study.seed} by paired bootstrap, "
        f"of several the mean of the differences at the same {study.seed}."
    )
    section.parts.extend([_means_table(study, groups, "video"), _means_table(study, groups, "frame")])
    section.parts.extend([_matrix_table(study, groups, file) for file in matrices])
    return section


def _cells_table(study: Study) -> Table:
    rows = []
    for cell in study.cells:
        letter = cell.run if isinstance(cell.run, Missing) else cell.run.letter
        numbers = [_test(cell, f"test/{level}/{metric}") for level, metric, _ in SHOWN]
        rows.append(Row(cell.name, [*cell.place.values(), letter, *numbers]))
    there = sum(not isinstance(cell.run, Missing) for cell in study.cells)
    caption = f"The cells: {there} of {len(study.cells)} are there. On the test split, with intervals of 95 % if known."
    columns = ["cell", *study.axes, "run", *(title for *_, title in SHOWN)]
    return Table("study-cells.csv", caption, columns, [Block("", rows)])


def _test(cell: StudyCell, name: str) -> Cell:
    if isinstance(cell.run, Missing):
        return cell.run
    result = cell.run.result("test")
    if isinstance(result, Result):
        return estimate(result.metrics, name) or Missing(f"{cell.run.letter}: {name} is undefined")
    return result


def _means_table(study: Study, groups: Mapping[tuple[str, ...], list[StudyCell]], level: Level) -> Table:
    runs = [cell.run for cell in study.cells if isinstance(cell.run, Run)]
    columns = [column for column in COLUMNS if column in ALWAYS or any(has(run, column) for run in runs)]
    rows, gains = [], []
    for key, cells in groups.items():
        there = sum(isinstance(cell.run, Run) for cell in cells)
        means = [_mean(cells, partial(number_on, column=column, metric="auc", level=level)) for column in columns]
        rows.append(Row("-".join(key), [f"{there} of {len(cells)}", *means]))
        if key[0] != study.baseline:
            others = {cell.place.get(study.seed): cell.run for cell in groups[study.baseline, *key[1:]]}
            cells_of_gain = [_mean_gain(study, cells, others, column, level) for column in columns]
            gains.append(Row("-".join(key), ["", *cells_of_gain]))
    caption = f"{TITLES['auc']} per {level} on the test split, by what the models were trained on."
    blocks = [Block("Means", rows), *([Block(f"Gain over {study.baseline}", gains)] if gains else [])]
    blocks, comparisons = holm(blocks)
    return Table(f"study-{level}.csv", caption + comparisons, ["cells", "seeds", *columns], blocks)


def _mean(cells: Sequence[StudyCell], value: Callable[[Run], Cell]) -> Cell:
    """Of those cells that have it; the reason of the first where none has."""
    found = [value(cell.run) if isinstance(cell.run, Run) else cell.run for cell in cells]
    return _pooled(found)


def _pooled(found: Sequence[Cell], kind: type[Estimate] = Estimate) -> Cell:
    numbers = [each for each in found if isinstance(each, Estimate)]
    if not numbers:
        return found[0]
    if len(numbers) == 1:
        return numbers[0]
    values = [each.value for each in numbers]
    return kind(fmean(values), deviation=stdev(values))


def _mean_gain(
    study: Study, cells: Sequence[StudyCell], others: Mapping[str | None, Run | Missing], column: str, level: Level
) -> Cell:
    """Of the cells over those of the baseline at the same seed, by seed."""
    found: list[Cell] = []
    for cell in cells:
        first = others[cell.place.get(study.seed)]
        if isinstance(cell.run, Missing):
            found.append(cell.run)
        elif isinstance(first, Missing):
            found.append(first)
        elif len(cells) == 1:
            return gain_on(first, cell.run, column, "auc", level)
        else:
            found.append(_difference(number_on(first, column, "auc", level), number_on(cell.run, column, "auc", level)))
    return _pooled(found, Gain)


def _difference(first: Cell, second: Cell) -> Cell:
    if isinstance(first, Estimate) and isinstance(second, Estimate):
        return Gain(second.value - first.value)
    return first if isinstance(first, Missing) else second


def _matrix_table(study: Study, groups: Mapping[tuple[str, ...], list[StudyCell]], file: Path) -> Table:
    """Means of the matrix over the seeds; its models are called by the folders of their runs."""
    shown = read_matrix(file)
    rows = []
    for key, cells in groups.items():
        names = [cell.run.path.resolve().name if isinstance(cell.run, Run) else None for cell in cells]
        known = [name for name in names if name in shown.models]
        if not known and any(isinstance(cell.run, Run) for cell in cells):
            continue  # of another root, which has a matrix of its own
        values = []
        for place, tested_on in enumerate(shown.tested_on):
            found: list[Cell] = []
            for cell, name in zip(cells, names, strict=True):
                if isinstance(cell.run, Missing):
                    found.append(cell.run)
                elif name in shown.models:
                    value, low, high = map(float, shown.values[shown.models.index(name), place])
                    undefined = Missing(f"{name} on {tested_on}: undefined, or not measured")
                    found.append(undefined if value != value else Estimate(value, *((low, high) if low == low else ())))
            values.append(_pooled(found))
        rows.append(Row("-".join(key), [f"{len(known)} of {len(cells)}", *values]))
    caption = f"{shown.metric} on the {shown.split} split: trained at one quality (down), tested at another (across)."
    return Table(f"study-{file.parent.name}.csv", caption, ["cells", "seeds", *shown.tested_on], [Block("", rows)])
