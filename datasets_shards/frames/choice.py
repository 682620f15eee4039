"""Which frames of a video are taken."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FrameChoice:
    """Some frames evenly spaced, every k-th, or all.

    Args:
        count: frames taken from each video, from the middle of equal stretches of the whole of it; None for no limit.
        every: take the first frame and every k-th after it instead; None to go by `count`.
    """

    count: int | None = 32
    every: int | None = None

    def pick(self, numbers: Sequence[int]) -> list[int]:
        """Those of a video's frame numbers that are taken, in their order."""
        if self.every is not None:
            return list(numbers[:: self.every])
        if self.count is None:
            return list(numbers)
        return [numbers[i] for i in evenly_spaced(len(numbers), self.count)]

    def describe(self) -> str:
        """For the manifest and for messages."""
        if self.every is not None:
            return f"every {self.every}. frame from the first on"
        return "all" if self.count is None else "middle of equal stretches of the video"

    def flag(self) -> str:
        """The flag of the command line that chooses so."""
        if self.every is not None:
            return f"--every {self.every}"
        return f"--frames-per-video {'all' if self.count is None else self.count}"


def evenly_spaced(total: int, count: int) -> list[int]:
    """Positions in the middle of each of `count` equal stretches of `total` frames; all, if fewer.

    >>> evenly_spaced(100, 4)
    [12, 37, 62, 87]
    """
    if count >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
