"""Ctrl-C and SIGTERM for a study: what runs is told to save, and a second Ctrl-C ends it at once."""

import os
import signal
import time
from types import FrameType

from fdtrain.signals import IMPATIENT_AFTER_S, SignalNotes


class Interrupt(SignalNotes):
    """Notes SIGINT and SIGTERM. Use it in a `with`, in the main thread.

    Args:
        requested: The signal that came, or 0.
        impatient: Whether another Ctrl-C came later.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        super().__init__()
        self.requested = 0
        self.impatient = False
        self._at = 0.0

    def note(self, number: int, frame: FrameType | None) -> None:
        """See `SignalNotes`."""
        now = time.monotonic()
        if not self.requested:
            self.requested, self._at = number, now
            os.write(1, b"\nwhat is under way is told to save and stop; Ctrl-C again ends it at once\n")
        elif number == signal.SIGINT and now - self._at >= IMPATIENT_AFTER_S:
            self.impatient = True
