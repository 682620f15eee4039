"""The trainings of a study as one Slurm array, which the same call of the study submits, watches and collects."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fdtrain.config import HostError
from launch.study.folder import StudyFolder
from launch.study.interrupt import Interrupt
from launch.study.plan import Entry

HOME = Path(__file__).parents[2]
NOTE = "array"
POLL_S, LONGEST_POLL_S = 5.0, 60.0
PATIENCE_S = 3600.0
"""How long `--wait` puts up with a Slurm that doesn't answer, such as one that is being restarted."""


class SlurmAwayError(HostError):
    """Slurm didn't answer, and may do so later."""


def ranks_of_jobs() -> int:
    """Processes of each training, by slurm/settings.sh and the environment."""
    source = f"source {shlex.quote(str(HOME / 'slurm' / 'settings.sh'))}"
    script = source + '; echo "${FDTRAIN_NODES:-1} ${FDTRAIN_GPUS:-1}"'
    nodes, gpus = map(int, _call("bash", "-c", script).split())
    return nodes * int(os.environ.get("FDTRAIN_RANKS") or max(gpus, 1))


class SlurmArray:
    """The array that a study submitted last.

    What is to be submitted is noted first, and goes to Slurm with the name of its file as the job's comment. So a study
    that was killed before it heard the job's id finds its array again.

    Args:
        folder: Of the study, on a file system that all nodes see.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder
        note = folder.note(NOTE)
        self.job: str | None = note.get("job")
        self._file: str = note.get("file", "")
        self.cells: list[str] = note.get("cells", [])
        self.is_collected: bool = note.get("collected", True)

    def under_way(self) -> list[str]:
        """The cells whose tasks wait or run."""
        if self.is_collected or not (self.job or self._find()):
            return []
        return [self.cells[int(number)] for number in _squeue("--array", f"--jobs={self.job}", "--format=%K")]

    def _find(self) -> bool:
        """Whether the array that was about to be submitted is in Slurm's hands; one that has ended left its runs."""
        for line in _squeue("--me", "--format=%F %k"):
            job, _, comment = line.partition(" ")
            if comment == self._comment:
                self.job = job
                return True
        self.is_collected = True
        return False

    @property
    def _comment(self) -> str:
        return f"fdtrain {self._file}"

    def submit(self, todo: Sequence[Entry], name: str) -> str:
        """Submit trainings as an array; gives its job id."""
        lines = []
        for entry in todo:
            log = self._folder.log(entry.cell.name)
            log.parent.mkdir(parents=True, exist_ok=True)
            words = [str(log), *entry.cell.words, "--run.dir", str(self._folder.run(entry.cell.name))]
            lines.append(" ".join(map(_quoted, words)))
        number = 1
        while (file := self._folder.path / ".study" / f"array-{number}.txt").exists():
            number += 1
        file.write_text("".join(f"{line}\n" for line in lines))
        self.job, self.cells, self.is_collected = None, [entry.cell.name for entry in todo], False
        self._file = str(file.absolute())
        self.save()
        output = self._folder.path / "logs" / "slurm-%A_%a.out"
        options = ["--parsable", f"--array=0-{len(todo) - 1}", f"--job-name={name}", f"--output={output}"]
        options += [f"--comment={self._comment}"]
        script = str(HOME / "slurm" / "study_array.sbatch")
        # Where this fails, Slurm may have taken it all the same, and only its answer was lost: the next call looks.
        # The call holds the study's folder, so nobody submits it again while it is on its way, whatever becomes of us.
        submit = str(HOME / "slurm" / "submit.sh")
        self.job = _call(submit, *options, script, str(file), keep=self._folder.lock).partition(";")[0]
        self.save()
        return self.job

    def mark_collected(self) -> None:
        """What became of it has been seen: cells that it left undone may be submitted again."""
        self.is_collected = True
        self.save()

    def wait(self, interrupt: Interrupt) -> None:
        """Until it has ended, or somebody interrupts, which leaves it alone."""
        told: list[str] = []
        pause, answered = POLL_S, time.monotonic()
        while not interrupt.requested:
            try:
                names = self.under_way()
            except SlurmAwayError as error:
                if time.monotonic() - answered > PATIENCE_S:
                    raise
                print(f"warning: {error}; waiting for it", file=sys.stderr, flush=True)
            else:
                answered = time.monotonic()
                if not names:
                    return
                if names != told:
                    print(f"job {self.job}: {len(names)} of {trainings(len(self.cells))} under way", flush=True)
                    told, pause = names, POLL_S
            until = time.monotonic() + pause
            while time.monotonic() < until and not interrupt.requested:
                time.sleep(min(0.1, pause))
            pause = min(2 * pause, LONGEST_POLL_S)

    def save(self) -> None:
        """Put down what is known of it."""
        note = {"job": self.job, "file": self._file, "cells": self.cells, "collected": self.is_collected}
        self._folder.write_note(NOTE, note)


def trainings(count: int) -> str:
    """`1 training`, `2 trainings`."""
    return f"{count} training{'s' * (count != 1)}"


def _quoted(word: str) -> str:
    """Quote a word for bash, on one line whatever is in it: each line of the array's file is a training."""
    if "\n" not in word:
        return shlex.quote(word)
    return "$'" + word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _squeue(*words: str) -> list[str]:
    """The lines of its answer. Raises HostError where there is no Slurm, SlurmAwayError where it doesn't answer."""
    try:
        done = subprocess.run(["squeue", "--noheader", *words], capture_output=True, text=True)
    except OSError as error:
        raise HostError(f"squeue: can't be run ({error.strerror}); the study's job is known where Slurm is") from None
    if done.returncode and "Invalid job id" not in done.stderr:  # which is how Slurm speaks of one that is long over
        fault = (done.stderr.strip().splitlines() or ["failed"])[-1]
        raise SlurmAwayError(f"squeue: {fault}; try again when Slurm answers")
    return done.stdout.splitlines()


def _call(*words: str, keep: Sequence[int] = ()) -> str:
    """What a command prints; it inherits the descriptors `keep`. Raises HostError where it fails."""
    try:
        # In a session of its own: Ctrl-C in a terminal must not reach sbatch while it waits for its answer.
        done = subprocess.run(words, capture_output=True, text=True, start_new_session=True, pass_fds=keep)
    except OSError as error:
        raise HostError(f"{words[0]}: can't be run ({error.strerror})") from None
    if done.returncode:
        raise HostError(f"{words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.strip()
