"""The folder of a study: one process at a time, and what is on record beside the runs themselves."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets_shards.errors import InputError
from datasets_shards.locks import hold
from datasets_shards.schema import write_atomic
from fdtrain.config import UserError
from fdtrain.report import STUDY_FILE, STUDY_FORMAT


class StudyFolder:
    """Runs, `logs/`, `matrix/`, `report/`, `study.json` (what the report reads) and `.study/` (what was done).

    Args:
        path: The folder; nothing is made before `claim`.
        name: Of the study.
        runs: What the run folders' names begin with, if that isn't the folder itself.

    Raises:
        UserError: it holds something else.
    """

    def __init__(self, path: Path, name: str, runs: str | None = None) -> None:
        self.path, self.name = path, name
        self._runs = runs or f"{path}/"
        self.record = path / STUDY_FILE
        self._notes = path / ".study"
        self.lock: tuple[int, ...] = ()
        """Descriptor of the lock, once it is claimed: a command that inherits it holds the folder too."""
        if path.exists() and not path.is_dir():
            raise UserError(f"study.dir: {path} is a file; name a folder")
        if (path / "config.yaml").exists():
            raise UserError(f"study.dir: {path} is the folder of a run; name another")
        known = self._read(self.record)
        if known and (known.get("format") != STUDY_FORMAT or known.get("name") != name):
            raise UserError(
                f"study.dir: {path} holds the study {known.get('name')}; name another folder, or that study"
            )

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Take the folder for this process until it ends. Raises UserError: another has it, or it can't be written."""
        try:
            self._notes.mkdir(parents=True, exist_ok=True)
            lock = (self._notes / "lock").open("a+b")
        except OSError as error:
            raise UserError(f"study.dir: {self.path} can't be written ({error.strerror}); name another") from None
        try:
            with lock, hold(lock, Path(lock.name), f"study.dir: {self.path} is in use by another study"):
                self.lock = (lock.fileno(),)
                yield
        except InputError as error:
            raise UserError(str(error)) from None

    def run(self, cell: str) -> Path:
        """The run folder of a cell."""
        return Path(f"{self._runs}{cell}")

    def log(self, name: str) -> Path:
        """Where the output of a cell or of a step goes."""
        return self.path / "logs" / f"{name}.log"

    def note(self, name: str) -> dict[str, Any]:
        """A note that was written here; empty where there is none."""
        return self._read(self._notes / f"{name}.json")

    def write_note(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a note for later calls."""
        write_atomic(self._notes / f"{name}.json", json.dumps(content, indent=2).encode() + b"\n")

    def write_record(self, content: Mapping[str, Any]) -> bytes:
        """Write `study.json`, which is left alone where it says the same already; gives what it says."""
        text = json.dumps({"format": STUDY_FORMAT, "name": self.name, **content}, indent=2).encode() + b"\n"
        if not self.record.exists() or self.record.read_bytes() != text:
            write_atomic(self.record, text)
        return text

    def set_aside(self, cell: str) -> Path | None:
        """Move the run of a cell out of the way, for one that takes its place; None where there is none."""
        run = self.run(cell)
        if not run.exists():
            return None
        number = 1
        while (aside := self.path / "replaced" / f"{cell}-{number}").exists():
            number += 1
        aside.parent.mkdir(exist_ok=True)
        shutil.move(run, aside)
        return aside

    def _read(self, path: Path) -> dict[str, Any]:
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); delete it") from None
        return content if isinstance(content, dict) else {}
