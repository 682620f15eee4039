"""How long trainings took, and by that how long others like them will take."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fdtrain.config import flatten
from fdtrain.run_folder import RunFolder
from launch.study.folder import StudyFolder
from launch.study.grid import QUALITY, SEED, Cell

SPEED_KEYS = ("model.", "multi_attention.", "loss.", "data.", "augment.", "train.", "engine.", "precision")
NO_OTHER_SPEED = (QUALITY, "data.cache_", "train.log_every")
"""Of those settings, the ones with which a training takes as long."""

TRIED = "tried"
"""Note of how long cells take by their first steps."""


class Times:
    """What is on record in a study.

    Args:
        finished: Cells whose trainings are.
        cells: All of them.
        folder: Of the study.

    Attributes:
        done: Name -> cell and seconds, of trainings that are finished.
        tried: The same by the first steps of a training.
    """

    def __init__(self, finished: Sequence[Cell], cells: Sequence[Cell], folder: StudyFolder) -> None:
        tried = folder.note(TRIED)
        times = {cell.name: RunFolder(folder.run(cell.name)).seconds for cell in finished}
        self.done = {cell.name: (cell, times[cell.name]) for cell in finished if times[cell.name]}
        self.tried = {
            cell.name: (cell, tried[cell.name]["seconds"])
            for cell in cells
            if cell.name in tried and tried[cell.name]["work"] == _digest(cell)
        }

    def expected(self, cell: Cell) -> tuple[float | None, str]:
        """Seconds of a whole training, None where nothing tells, and what tells it."""
        ways: tuple[tuple[Mapping[str, tuple[Cell, float]], str], ...] = (
            (self.done, "since {} took {}"),
            (self.tried, "since {} would take {} by its first steps"),
        )
        for times, because in ways:
            for ignored in ((), ("train.epochs",)):
                like = [(other, seconds) for other, seconds in times.values() if is_like(cell, other, ignored)]
                if like:
                    scaled = [seconds * cell.config.train.epochs / other.config.train.epochs for other, seconds in like]
                    mean = sum(scaled) / len(scaled)
                    told = because.format(like[0][0].name, duration(like[0][1]))
                    more = f", {len(like)} like it" if like[1:] else ""
                    return mean, f"about {duration(mean)} in all, {told}{more}"
        return None, ""


def note_tried(cell: Cell, seconds: float, folder: StudyFolder) -> None:
    """Put down how long a cell takes by its first steps, for as long as no setting of it changes that takes time."""
    folder.write_note(TRIED, folder.note(TRIED) | {cell.name: {"seconds": seconds, "work": _digest(cell)}})


def is_like(cell: Cell, other: Cell, ignored: Sequence[str] = ("train.epochs",)) -> bool:
    """Whether two trainings differ in nothing that takes time but for `ignored`."""
    if cell.config.train.max_steps is not None:
        ignored = ()  # it is as long whatever its epochs
    return _work(cell, ignored) == _work(other, ignored)


def _digest(cell: Cell) -> str:
    return hashlib.sha256(json.dumps(_work(cell, ()), sort_keys=True).encode()).hexdigest()


def _work(cell: Cell, ignored: Sequence[str]) -> dict[str, Any]:
    settings = flatten(cell.config.to_dict())
    return {
        key: value
        for key, value in settings.items()
        if key.startswith(SPEED_KEYS) and not key.startswith(NO_OTHER_SPEED) and key not in (*ignored, SEED)
    }


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5 h 10 min`, `2 d 3 h`."""
    whole = round(seconds)
    for size, name, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"
