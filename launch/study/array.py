"""The trainings of a study as one Slurm array, which the same call of the study submits, watches and collects."""

import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from fdtrain.config import HostError
from launch.study.folder import StudyFolder
from launch.study.interrupt import Interrupt
from launch.study.plan import Entry

HOME = Path(__file__).parents[2]
NOTE = "array"
POLL_S = 5.0


def ranks_of_jobs() -> int:
    """Processes of each training, by slurm/settings.sh and the environment."""
    source = f"source {shlex.quote(str(HOME / 'slurm' / 'settings.sh'))}"
    script = source + '; echo "${FDTRAIN_NODES:-1} ${FDTRAIN_GPUS:-1}"'
    nodes, gpus = map(int, _call("bash", "-c", script).split())
    return nodes * int(os.environ.get("FDTRAIN_RANKS") or max(gpus, 1))


class SlurmArray:
    """The array that a study submitted last.

    Args:
        folder: Of the study, on a file system that all nodes see.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder
        note = folder.note(NOTE)
        self.job: str | None = note.get("job")
        self.cells: list[str] = note.get("cells", [])
        self.is_collected: bool = note.get("collected", True)

    def under_way(self) -> list[str]:
        """The cells whose tasks wait or run."""
        if self.job is None or self.is_collected:
            return []
        command = ["squeue", "--noheader", "--array", f"--jobs={self.job}", "--format=%K"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise HostError(
                f"squeue: can't be run ({error.strerror}); job {self.job} is known where Slurm is"
            ) from None
        if (
            done.returncode and "Invalid job id" not in done.stderr
        ):  # which is how Slurm speaks of one that is long over
            raise HostError(f"squeue: {done.stderr.strip() or 'failed'}; try again when Slurm answers")
        return [self.cells[int(number)] for number in done.stdout.split()]

    def submit(self, todo: Sequence[Entry], name: str) -> str:
        """Submit trainings as an array; gives its job id."""
        lines = []
        for entry in todo:
            log = self._folder.log(entry.cell.name)
            log.parent.mkdir(parents=True, exist_ok=True)
            lines.append(shlex.join([str(log), *entry.cell.words, "--run.dir", str(self._folder.run(entry.cell.name))]))
        number = 1
        while (file := self._folder.path / ".study" / f"array-{number}.txt").exists():
            number += 1
        file.write_text("".join(f"{line}\n" for line in lines))
        output = self._folder.path / "logs" / "slurm-%A_%a.out"
        options = ["--parsable", f"--array=0-{len(todo) - 1}", f"--job-name={name}", f"--output={output}"]
        script = str(HOME / "slurm" / "study_array.sbatch")
        job = _call(str(HOME / "slurm" / "submit.sh"), *options, script, str(file)).partition(";")[0]
        self.job, self.cells, self.is_collected = job, [entry.cell.name for entry in todo], False
        self._write()
        return job

    def mark_collected(self) -> None:
        """What became of it has been seen: cells that it left undone may be submitted again."""
        self.is_collected = True
        self._write()

    def wait(self, interrupt: Interrupt) -> None:
        """Until it has ended, or somebody interrupts, which leaves it alone."""
        told: list[str] = []
        while (names := self.under_way()) and not interrupt.requested:
            if names != told:
                print(f"job {self.job}: {len(names)} of {len(self.cells)} trainings wait or run", flush=True)
                told = names
            until = time.monotonic() + POLL_S
            while time.monotonic() < until and not interrupt.requested:
                time.sleep(0.1)

    def _write(self) -> None:
        self._folder.write_note(NOTE, {"job": self.job, "cells": self.cells, "collected": self.is_collected})


def _call(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        raise HostError(f"{words[0]}: can't be run ({error.strerror})") from None
    if done.returncode:
        raise HostError(f"{words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.strip()
