"""The folder of a run: what is in it, who may write to it, and how the run fares."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from datasets_shards.schema import append_whole, write_atomic
from fdtrain.config import TransientError, UserError
from fdtrain.stopping import StopRequested

State = Literal["running", "finished", "preempted", "failed"]


LEAVE_S = 60.0
"""How long processes that were killed, or told to save, may take to let go of a run's folder."""


class FolderInUseError(TransientError):
    """Another process has the run folder."""


class RunFolder:
    """Files of one run, written by rank 0 alone.

    `config.yaml` (resolved), `engine.json` (what DeepSpeed was given), `checkpoints/`, `best/`,
    `predictions/{val,test}.parquet`, `metrics.json`, `log.jsonl` and `status.json`, which scripts act on since torchrun
    turns every exit code into 1.

    Args:
        path: The folder; made if need be.
        began: `time.monotonic()` from which the time of a training counts; now by default.
    """

    def __init__(self, path: Path, began: float | None = None) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"
        self.config = path / "config.yaml"
        self.engine = path / "engine.json"
        self.nonfinite = path / "nonfinite"
        self.profile = path / "profile"
        self.metrics = path / "metrics.json"
        self._opened = time.monotonic() if began is None else began
        self._trains = False  # whether this process does
        self._seconds_before = 0.0
        self._lock: int | None = None
        self._made: list[Path] = []  # by `claim`, the innermost first
        self._log = path / "log.jsonl"

    def predictions(self, split: str) -> Path:
        """Where the predictions of a split go."""
        return self.path / "predictions" / f"{split}.parquet"

    def is_in_use(self) -> bool:
        """Whether a process holds the folder, such as workers that save after their launcher was killed."""
        try:
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def wait_until_left(self, seconds: float, give_up: Callable[[], bool] = lambda: False) -> None:
        """Wait until no process holds the folder, or the time is over, or `give_up` says so."""
        deadline = time.monotonic() + seconds
        while self.is_in_use() and time.monotonic() < deadline and not give_up():
            time.sleep(0.2)

    def claim(self, resume: bool) -> None:
        """Take the folder for this process until it ends.

        Raises:
            FolderInUseError: another process has it.
            UserError: it holds a run and `resume` is false, or it can't be written.
        """
        try:
            self._made = [each for each in (self.path, *self.path.parents) if not each.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"run.dir: {self.path} can't be written ({error.strerror}); choose another") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
        except BlockingIOError:
            os.close(lock)
            raise FolderInUseError(
                f"run.dir: {self.path} is in use by another run; wait for it or choose another"
            ) from None
        except OSError as error:
            os.close(lock)
            raise UserError(f"run.dir: {self.path} can't be locked ({error.strerror}); choose another disk") from None
        if not os.fstat(lock).st_nlink:  # one that left nothing has just removed it
            os.close(lock)
            self.claim(resume)
            return
        self._lock = lock
        if self.config.exists() and not resume:
            self.release()
            raise UserError(
                f"run.dir: {self.path} holds a run already; go on with it by --run.resume auto, or choose another"
            )

    def release(self) -> None:
        """Give the folder back; what `claim` made goes where no run came of it."""
        if self._lock is None:
            return
        if self._made and not self._trains:
            (self.path / ".lock").unlink()
            with suppress(OSError):  # something else is in there by now
                for folder in self._made:
                    folder.rmdir()
        os.close(self._lock)
        self._lock = None

    def begin(self, resumed: bool) -> None:
        """From now on this process trains; where the run goes on, what it has taken counts."""
        self._seconds_before = self.seconds if resumed else 0.0
        self._trains = True

    @property
    def seconds(self) -> float:
        """Wall time of the run with the starts that it went on from, up to now where this process trains it, or its
        last status."""
        if not self._trains:
            return self.status().get("seconds", 0.0)
        return self._seconds_before + time.monotonic() - self._opened

    def write_status(self, state: State, reason: str = "", **facts: Any) -> None:
        """Write `status.json`."""
        content = {"state": state, "reason": reason, "time": time.time(), "seconds": self.seconds, **facts}
        write_atomic(self.path / "status.json", json.dumps(content, indent=2).encode() + b"\n")

    @contextmanager
    def failing(self, is_main: bool) -> Iterator[None]:
        """Leave the reason of a failure in `status.json`.

        What fails before the run is under way leaves the status of the run that stood in this folder already, and none
        in a new one.
        """
        try:
            yield
        except StopRequested:
            raise  # which has left its status
        except BaseException as error:  # whatever ends a run, Ctrl-C too: noted, and raised again
            # "running" was left by a run that was killed: this process has the folder.
            if is_main and (self._trains or (not self._made and self.status().get("state") in (None, "running"))):
                interrupted = isinstance(error, KeyboardInterrupt)
                reason = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
                try:
                    self.write_status("failed", reason)
                except OSError as fault:  # a full disk, which may be what ended the run
                    print(f"warning: status.json still says how the run stood before: {fault}", file=sys.stderr)
            raise

    def status(self) -> dict[str, Any]:
        """Read `status.json`; empty where there is none yet."""
        path = self.path / "status.json"
        return json.loads(path.read_bytes()) if path.exists() else {}

    def log(self, **record: Any) -> None:
        """Add a line to `log.jsonl`; where the disk is full, OSError, and no part of it."""
        line = json.dumps(record).encode() + b"\n"
        with self._log.open("ab", buffering=0) as file:
            append_whole(file, line)

    def rewind_log(self, step: int) -> None:
        """Drop the lines of steps after `step`, which a resumed run is about to do again."""
        if self._log.exists():
            kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
            write_atomic(self._log, "".join(kept).encode())

    def records(self) -> list[dict[str, Any]]:
        """The lines of `log.jsonl`; one without an end, which a crash cut short or is being written, is left out."""
        lines = self._log.read_text().splitlines(keepends=True) if self._log.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]
