"""Stopping well: a signal on any rank, or the end of the time, stops all ranks after the same step."""

import os
import signal
import time
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from fdtrain.signals import IMPATIENT_AFTER_S, SignalNotes

_TIME_IS_UP = 1000  # above every signal's number, so that one of them gives way to it


class StopRequested(Exception):
    """All ranks have agreed to stop here.

    Args:
        reason: Which signal, or that the time is up.
        is_interrupt: Whether somebody pressed Ctrl-C.
    """

    def __init__(self, reason: str, is_interrupt: bool) -> None:
        super().__init__(reason)
        self.reason, self.is_interrupt = reason, is_interrupt


class Stopper(SignalNotes):
    """Notes signals, and lets the ranks agree on them between steps. Use it in a `with`.

    A second Ctrl-C, a second or more after the first, ends the process at once.

    Args:
        max_minutes: After which to stop, from `began`; None for never.
        began: `time.monotonic()` of the run's beginning.
    """

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, max_minutes: float | None, began: float) -> None:
        super().__init__()
        self._deadline = float("inf") if max_minutes is None else began + 60 * max_minutes
        self._request = 0
        self._interrupted_at: float | None = None
        self._last_check: float | None = None
        self._longest = 0.0
        self.reserve_s = 0.0
        """What the writing of a checkpoint takes, where that is known."""
        self._agreement: tuple[torch.Tensor, Any] | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """See `SignalNotes`."""
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted_at is not None and now - self._interrupted_at >= IMPATIENT_AFTER_S:
                os.write(2, b"interrupted again: ending at once\n")
                os._exit(128 + number)
            self._interrupted_at = self._interrupted_at or now
        self._request = self._request or number

    @property
    def is_asked(self) -> bool:
        """Whether this rank was told to stop; the others may not know of it yet."""
        return self._request != 0

    def stop_alone(self) -> NoReturn:
        """Stop as asked without hearing the other ranks: for one process that can't go on to its next step."""
        self._stop(self._request)

    def _stop(self, code: int) -> NoReturn:
        if code == _TIME_IS_UP:
            raise StopRequested("train.max_minutes are over", False)
        raise StopRequested(signal.Signals(code).name, code == signal.SIGINT)

    def check(self) -> None:
        """Between two steps, on every rank: stop if any of them is to. Collective.

        What the ranks tell each other travels while the next step is computed, so nobody waits for it, and a request
        takes effect one step later.

        Raises:
            StopRequested: on every rank, after the same step.
        """
        self._watch_the_clock()
        if self._agreement is not None:
            said, pending = self._agreement
            self._agreement = None
            pending.wait()
            if code := int(said):
                self._stop(code)
        said = torch.tensor(self._request)
        self._agreement = said, dist.all_reduce(said, dist.ReduceOp.MAX, async_op=True)

    def settle(self) -> None:
        """After the last step: take back what was asked for and not agreed. Collective."""
        if self._agreement is not None:
            self._agreement[1].wait()
            self._agreement = None

    def _watch_the_clock(self) -> None:
        """The longest of the steps so far, with whatever was done between them, is what the next ones may take."""
        now = time.monotonic()
        if self._last_check is not None:
            self._longest = max(self._longest, now - self._last_check)
        self._last_check = now
        # This step's request is met after the next, and then there is a checkpoint to write.
        if now + 3 * self._longest + self.reserve_s > self._deadline:
            self._request = _TIME_IS_UP
