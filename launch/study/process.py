"""A command that runs beside the study: it ends with the study, and is told to stop so that it can save."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

REPEAT_S = 2.0
"""Between two signals to stop: a worker that is still importing torch ignores the first."""

_PR_SET_PDEATHSIG = 1


def training_words(words: Sequence[str], run: Path, ranks: int) -> list[str]:
    """The command of a training, as a user would type it."""
    return [*torchrun_words(ranks), *words, "--run.dir", str(run), "--run.resume", "auto"]


def torchrun_words(ranks: int) -> list[str]:
    """`python -m torch.distributed.run ... -m fdtrain`."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m", "fdtrain"]


class Command:
    """`python WORDS`, its output in a file.

    Args:
        words: Behind `python`.
        log: The file; what is in it stays.
        environment: Of the command.
        is_training: Under torchrun, whose workers save when they get USR1; anything else gets TERM.
    """

    def __init__(self, words: Sequence[str], log: Path, environment: Mapping[str, str], is_training: bool) -> None:
        self.is_training, self.began = is_training, time.monotonic()
        self._told = -REPEAT_S
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self.begins_at = file.tell()
            self._process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C in a terminal is for the study, which passes it on
                preexec_fn=_prepare,
            )

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        return self._process.poll()

    def stop(self) -> None:
        """Tell it to stop. To be called again and again until it has ended."""
        now = time.monotonic()
        if now - self._told < REPEAT_S or self.poll() is not None:
            return
        self._told = now
        if not self.is_training:
            os.killpg(self._process.pid, signal.SIGTERM)
            return
        with suppress(psutil.NoSuchProcess):  # it has just ended
            for worker in psutil.Process(self._process.pid).children():
                worker.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End it at once; torchrun's workers die with it."""
        if self.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _prepare() -> None:
    # torchrun would die of USR1 and leave its workers behind; what is ignored stays so across exec.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform.startswith("linux"):  # a study that is killed must not leave a training that nobody knows of
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def last_words(log: Path, begins_at: int) -> str:
    """The line of an output that says best what went wrong: the last error, else the last line."""
    with log.open("rb") as file:
        file.seek(begins_at)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if ": error: " in line]
    return errors[-1] if errors else lines[-1] if lines else "it wrote nothing"
