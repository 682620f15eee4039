"""What came of the samples that were read: how long it took, and what is done about the ones that can't be used."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from datasets_shards.schema import ShardSetError

ATTEMPTS = 20
"""Substitutes of substitutes before giving up: with one bad sample in two it takes a million samples to get there."""

Substitutes = Callable[[np.ndarray, int], np.ndarray]
"""Rows that stand in for those at some positions, by attempt: `TrainPlan.substitutes`."""


class Intake:
    """Counts and judges, for all threads of a loader.

    Args:
        substitutes: Where a sample that can't be read or decoded gets its stand-in; None makes it an error.
        limit: Different bad samples that this rank puts up with.
    """

    def __init__(self, substitutes: Substitutes | None = None, limit: int = 0) -> None:
        self._substitutes = substitutes
        self._limit = limit
        self._lock = threading.Lock()
        self._bad: set[tuple[int, int]] = set()
        self._seconds = {"read": 0.0, "decode": 0.0}
        self.substituted = 0
        """Substitutes that were taken, for the same samples again as well."""

    @property
    def bad_samples(self) -> int:
        """Different samples that couldn't be used."""
        return len(self._bad)

    @contextmanager
    def timing(self, work: str) -> Iterator[None]:
        """Around "read" or "decode", in whatever thread."""
        began = time.perf_counter()
        yield
        with self._lock:
            self._seconds[work] += time.perf_counter() - began

    def substitute(self, row: int, quality: int, position: int, attempt: int, error: ShardSetError) -> int:
        """The row that stands in for a bad one.

        Raises:
            ShardSetError: `error` itself where bad samples are errors; or there are more of them than is allowed.
        """
        if self._substitutes is None:
            raise error
        with self._lock:
            self.substituted += 1
            if (row, quality) not in self._bad:
                self._bad.add((row, quality))
                print(f"warning: skipped a bad sample: {error}", file=sys.stderr, flush=True)
            if len(self._bad) > self._limit or attempt == ATTEMPTS:
                raise ShardSetError(
                    f"{error}; it is bad sample number {len(self._bad)} of this rank, and data.max_bad_share allows "
                    f"{self._limit}: mend the set, or raise it"
                )
        return int(self._substitutes(np.array([position]), attempt)[0])

    def take(self) -> dict[str, float]:
        """Seconds of reading and decoding, summed over the threads, since the last call; bad samples in all."""
        with self._lock:
            seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
            return {f"train/{work}_s": value for work, value in seconds.items()} | {"train/bad_samples": len(self._bad)}
