"""Before and after more frames of each training video: runs that differ in `data.frames_per_video` (Table 3)."""

from collections.abc import Sequence
from itertools import combinations

from fdtrain.report.compare import Level, gain
from fdtrain.report.content import Block, Cell, Missing, Row, Section, Table, estimate, holm
from fdtrain.report.runs import Result, Run

KEY = "data.frames_per_video"
SAME = ("model.name", "data.quality")
"""What two runs must share to be set side by side; whatever else differs is said."""

UNTOLD = (
    "run.",
    "tracking.",
    "checkpoint.",
    "loader.",
    "data.cache_",
    "train.log_every",
    "engine.timeout_minutes",
    "engine.device",
)
"""Settings by their beginnings that make no other model."""

METRICS: tuple[tuple[Level, str], ...] = (("video", "auc"), ("frame", "auc"), ("video", "acc"))


def frames_section(runs: Sequence[Run]) -> Section:
    """Table 3."""
    section = Section("frames", "More frames of each video")
    pairs = [
        _in_order(one, other)
        for one, other in combinations(runs, 2)
        if all(one.config.get(key) == other.config.get(key) for key in SAME)
        and one.config.get(KEY) != other.config.get(KEY)
    ]
    # Where some differ in nothing else, as the seeds of a study do, the others would only hide them.
    pairs = [pair for pair in pairs if not _other_differences(*pair)] or pairs
    if not pairs:
        reason = f"no two of these runs are of one model and quality and differ in {KEY}"
        section.parts.append(Missing(f"{reason}; train one again with another {KEY}"))
        return section
    columns = ["runs", "frames before", "frames after"]
    for level, metric in METRICS:
        columns += [f"{metric.upper()} per {level} {word}" for word in ("before", "after", "gain")]
    caption = (
        f"Table 3. Test metrics before and after more frames of each training video ({KEY}), with 95 % intervals "
        "where they are known; gains by paired bootstrap."
    )
    blocks, comparisons = holm([Block("", [_row(before, after) for before, after in pairs])])
    section.parts.append(Table("table-3.csv", caption + comparisons, [*columns, "differ also in"], blocks))
    return section


def _in_order(one: Run, other: Run) -> tuple[Run, Run]:
    """Fewer frames first; no limit is more than any."""

    def frames(run: Run) -> float:
        value = run.config.get(KEY)
        return float("inf") if value is None else value

    return (one, other) if frames(one) < frames(other) else (other, one)


def _row(before: Run, after: Run) -> Row:
    cells: list[Cell] = [_frames(before), _frames(after)]
    results = before.result("test"), after.result("test")
    for level, metric in METRICS:
        cells += [
            _number(run, result, f"test/{level}/{metric}") for run, result in zip((before, after), results, strict=True)
        ]
        missing = next((result for result in results if isinstance(result, Missing)), None)
        if missing:
            cells.append(missing)
        else:
            one, other = (result for result in results if isinstance(result, Result))
            cells.append(gain(f"{after.letter} over {before.letter}", one, other, level=level, metric=metric))
    return Row(f"{before.letter} → {after.letter}", [*cells, ", ".join(_other_differences(before, after)) or "nothing"])


def _frames(run: Run) -> str:
    value = run.config.get(KEY)
    return "all" if value is None else str(value)


def _number(run: Run, result: Result | Missing, name: str) -> Cell:
    if isinstance(result, Missing):
        return result
    return estimate(result.metrics, name) or Missing(f"{run.letter}: {name} is undefined")


def _other_differences(one: Run, other: Run) -> list[str]:
    keys = [key for key in one.config.keys() | other.config.keys() if key != KEY and not key.startswith(UNTOLD)]
    return sorted(key for key in keys if one.config.get(key) != other.config.get(key))
