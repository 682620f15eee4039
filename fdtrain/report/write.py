"""The report of some runs, into one folder: the page, its figures as PNG and its tables as CSV."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from datasets_shards.page import Picture
from datasets_shards.schema import write_atomic
from fdtrain.config import UserError
from fdtrain.report.content import Section, Table
from fdtrain.report.cost import cost_section
from fdtrain.report.facts import facts_section, made_with, overview_section, selection_note
from fdtrain.report.frames import frames_section
from fdtrain.report.inside import Drawing, inside_section
from fdtrain.report.matrix import MATRIX, matrix_section
from fdtrain.report.mistakes import mistakes_section
from fdtrain.report.page import render_page
from fdtrain.report.references import read_references
from fdtrain.report.runs import Run, read_runs
from fdtrain.report.scores import calibration_section, roc_section
from fdtrain.report.study import read_study, study_section
from fdtrain.report.subsets import subset_section
from fdtrain.report.training import metrics_section, training_section

PAGE, RECORD, FORMAT = "index.html", "report.json", "fdtrain-report"
FIGURES, TABLES = "figures", "tables"


@dataclass(frozen=True)
class Request:
    """What a report is to show.

    Args:
        runs: Run folders, and folders with the matrix of `evaluate --matrix`.
        matrices: Files of such a matrix.
        study: The study.json of a study whose cells the runs are.
        references: YAML file of published figures.
        faces: Of the worst mistakes, of either kind, at most.
        drawing: What is drawn of runs that have no figures yet.
    """

    runs: Sequence[Path]
    matrices: Sequence[Path]
    study: Path | None
    references: Path
    faces: int
    drawing: Drawing


def write_report(request: Request, out: Path) -> None:
    """Write `index.html`, `figures/` and `tables/`; a report that is there gives way file by file, the page last.

    Raises:
        UserError: a run, a matrix or the references can't be used, or `out` holds something else.
    """
    before = _files_of(out)
    found = [place for place in request.runs if _is_matrix_folder(place)]
    runs = read_runs([place for place in request.runs if place not in found])
    if not runs:
        raise UserError("runs: only matrices were given; name at least one run folder")
    references = read_references(request.references)
    matrices = [*request.matrices, *(place / MATRIX for place in found)]
    study = read_study(request.study, runs) if request.study else None
    steps: list[Callable[[], Section]] = [
        *([lambda: study_section(study, matrices)] if study else []),
        lambda: overview_section(runs),
        lambda: training_section(runs),
        lambda: metrics_section(runs),
        lambda: subset_section(runs, references),
        lambda: frames_section(runs),
        lambda: cost_section(runs),
        lambda: roc_section(runs),
        lambda: calibration_section(runs),
        lambda: matrix_section(matrices),
        lambda: inside_section(runs, request.drawing),
        lambda: mistakes_section(runs, request.faces),
        lambda: facts_section(runs),
    ]
    sections = [step() for step in tqdm(steps, unit="section", disable=None)]
    _write(out, before, runs, sections)
    gaps = sum(len(list(section.missing())) for section in sections)
    print(f"{out / PAGE}: {_count(runs)}, {len(sections)} sections; {gaps} things missing, each with its reason")


def _count(runs: Sequence[Run]) -> str:
    return f"{len(runs)} run" if len(runs) == 1 else f"{len(runs)} runs"


def _is_matrix_folder(place: Path) -> bool:
    return (place / MATRIX).is_file() and not (place / "config.yaml").exists()


def _files_of(out: Path) -> list[str]:
    """The files of an earlier report there. Raises UserError where it isn't one of ours, and not empty."""
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file; name a folder")
    if not out.exists() or not any(out.iterdir()):
        return []
    try:
        record = json.loads((out / RECORD).read_bytes())
        if record["format"] == FORMAT:
            return [str(name) for name in record["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"out: {out} isn't empty and holds no report; name another folder")


def _write(out: Path, before: Sequence[str], runs: Sequence[Run], sections: Sequence[Section]) -> None:
    files: dict[str, bytes] = {}
    for part in (part for section in sections for part in section.parts):
        if isinstance(part, Picture):
            files[f"{FIGURES}/{part.file}"] = part.content
        elif isinstance(part, Table):
            files[f"{TABLES}/{part.file}"] = part.csv()
    title = f"{_count(runs)} of face-forgery detectors"
    page = render_page(title, selection_note(runs), sections, f"{made_with()}.")
    record = {"format": FORMAT, "runs": [str(run.path) for run in runs], "files": sorted(files)}
    for folder in (FIGURES, TABLES):
        (out / folder).mkdir(parents=True, exist_ok=True)
    # The record comes first: what it lists and isn't there yet does no harm.
    write_atomic(out / RECORD, json.dumps(record | {"files": sorted({*files, *before})}, indent=2).encode() + b"\n")
    for name, content in files.items():
        write_atomic(out / name, content)
    write_atomic(out / PAGE, page.encode())
    for name in set(before) - files.keys():  # of runs that this report isn't of
        (out / name).unlink(missing_ok=True)
    write_atomic(out / RECORD, json.dumps(record, indent=2).encode() + b"\n")
