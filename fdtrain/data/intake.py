"""What came of the samples that were read: how long it took, and what is done about the ones that can't be used."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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
        limit: Different bad samples that the run, all ranks together, puts up with.
    """

    def __init__(self, substitutes: Substitutes | None = None, limit: int = 0) -> None:
        self._substitutes = substitutes
        self._limit = limit
        self.skips = substitutes is not None
        """Whether bad samples are no errors."""
        self._lock = threading.Lock()
        self._faults: dict[tuple[int, int], str] = {}  # by row and quality
        self._seconds = {"read": 0.0, "decode": 0.0}
        self.substituted = 0
        """Substitutes that were taken, for the same samples again as well."""
        self.before: frozenset[int] = frozenset()
        """Bad rows of the run before it was resumed, on any rank; they count where another one is met."""

    def fault(self, row: int, quality: int) -> ShardSetError | None:
        """What is known to be wrong with a row at one quality, so that it need not be read and decoded to be refused.

        Of that quality alone: whether the others of a mix are used must not depend on which of them came first.
        """
        fault = self._faults.get((row, quality))
        return None if fault is None else ShardSetError(fault)

    @contextmanager
    def timing(self, work: str) -> Iterator[None]:
        """Around "read" or "decode", in whatever thread."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[work] += time.perf_counter() - began

    def substitute(self, row: int, quality: int, position: int, attempt: int, error: ShardSetError) -> int:
        """The row that stands in for a bad one.

        Raises:
            ShardSetError: `error` itself where bad samples are errors; there are more of them than is allowed; or no
                substitute after many is any better.
        """
        if self._substitutes is None:
            raise error
        with self._lock:
            self.substituted += 1
            if (row, quality) not in self._faults:
                self._faults[row, quality] = str(error)
                print(f"warning: skipped a bad sample: {error}", file=sys.stderr, flush=True)
        self.judge(self.bad_samples())
        if attempt == ATTEMPTS:
            raise ShardSetError(f"{error}; nor could any of {ATTEMPTS} substitutes be used: mend the set") from error
        return int(self._substitutes(np.array([position]), attempt)[0])

    def judge(self, bad: Mapping[int, str]) -> None:
        """Raise ShardSetError where there are more bad samples, of one rank or of all of them, than is allowed."""
        number = len(self.before.union(bad))
        if number > self._limit:
            last = list(bad.values())[-1]
            raise ShardSetError(
                f"{last}; it is bad sample number {number}, and data.max_bad_share allows {self._limit}: mend the "
                "set, or raise it"
            )

    def bad_samples(self) -> dict[int, str]:
        """The rows that couldn't be used since the start or the resume, and what was wrong with them."""
        with self._lock:
            return {row: fault for (row, _), fault in self._faults.items()}

    def take_seconds(self) -> dict[str, float]:
        """Seconds of reading and decoding, summed over the threads, since the last call."""
        with self._lock:
            seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return {f"train/{work}_s": value for work, value in seconds.items()}
