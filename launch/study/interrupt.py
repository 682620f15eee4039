"""Ctrl-C and SIGTERM for a study: what runs is told to save, and a second Ctrl-C ends it at once."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

IMPATIENT_AFTER_S = 1.0
"""A Ctrl-C that comes sooner after the first is the same one."""


class Interrupt:
    """Notes SIGINT and SIGTERM. Use it in a `with`, in the main thread.

    Args:
        requested: The signal that came, or 0.
        impatient: Whether another Ctrl-C came later.
    """

    def __init__(self) -> None:
        self.requested = 0
        self.impatient = False
        self._at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._at = number, now
            os.write(1, b"\nwhat is under way is told to save and stop; Ctrl-C again ends it at once\n")
        elif number == signal.SIGINT and now - self._at >= IMPATIENT_AFTER_S:
            self.impatient = True
