"""Signals that are noted, to be acted on between two steps of whatever is under way."""

import signal
import threading
from abc import ABC, abstractmethod
from types import FrameType, TracebackType
from typing import Any, Self

IMPATIENT_AFTER_S = 1.0
"""A Ctrl-C that comes sooner after the first is the same one: a worker gets it at once, and again from torchrun."""


class SignalNotes(ABC):
    """Has `note` called with the signals that come, in a `with`; afterwards they mean what they meant before.

    Signals belong to the main thread: in another one, such as that of Ray's workers, whoever started it has them.
    """

    signals: tuple[signal.Signals, ...]

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self.note) for number in self.signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @abstractmethod
    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal came."""
