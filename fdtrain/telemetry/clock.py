"""Seconds that the device spends in the phases of a step, without waiting for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseClock:
    """Adds up the seconds of named phases.

    On a GPU they are the device's own, between two events on the current stream, and are read when asked for; on a CPU
    they are wall-clock time. A trace of the profiler shows the phases by their names.

    Args:
        device: Where the phases run.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Around a phase. It counts only where it ends well."""
        with torch.profiler.record_function(name):
            if self._is_cuda:
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                began.record()
                yield
                ended.record()
                self._events.append((name, began, ended))
            else:
                start = time.perf_counter()
                yield
                self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured otherwise; of a phase within another, they may be negative."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call. On a GPU, waits for the last of them."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, began, ended in self._events:
            self.add(name, began.elapsed_time(ended) / 1000)
        self._events.clear()
        seconds, self._seconds = self._seconds, {}
        return seconds
