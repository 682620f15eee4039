"""The sample plan: which rows form which batch, from integers alone.

The global batch of a step is a function of (rows, seed, epoch, step). Micro-batches are cut from it in order, whatever
the world size, and ranks take them in turn. So a run resumes by arithmetic, nothing is replayed, and a run on another
number of ranks sees the same samples in the same order, grouped into the same micro-batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fdtrain.config import UserError


class MicroBatch(NamedTuple):
    """The rows of one forward pass, and its number within the global batch (the key of its random draws)."""

    number: int
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class TrainPlan:
    """The order of a training run: every row once per epoch, in an order that each epoch draws anew.

    The last, incomplete global batch of an epoch is dropped; as the order changes with the epoch, so do the rows that
    fall out.

    Args:
        rows: int64 `[N]`, row numbers of the training split.
        seed: Seed of the order.
        global_batch_size: Rows of one optimizer step.
        micro_batch_size: Rows of one forward pass; divides `global_batch_size`.

    Raises:
        UserError: the split is smaller than one global batch.
    """

    rows: np.ndarray
    seed: int
    global_batch_size: int
    micro_batch_size: int

    def __post_init__(self) -> None:
        assert self.global_batch_size % self.micro_batch_size == 0
        if len(self.rows) < self.global_batch_size:
            raise UserError(
                f"train.global_batch_size: {self.global_batch_size} is more than the {len(self.rows)} samples of the "
                "training split; make it smaller"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return len(self.rows) // self.global_batch_size

    def global_batch(self, step: int) -> np.ndarray:
        """int64 `[global_batch_size]`: the rows of optimizer step `step`, counted from 0 through all epochs. O(1)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = _permutation(len(self.rows), self.seed, epoch)
        start = step_in_epoch * self.global_batch_size
        return self.rows[order[start : start + self.global_batch_size]]

    def micro_batches(self, step: int, rank: int, world_size: int) -> list[MicroBatch]:
        """The share of one rank in step `step`, in the order of its forward passes."""
        parts = self.global_batch(step).reshape(-1, self.micro_batch_size)
        return [MicroBatch(number, parts[number]) for number in range(rank, len(parts), world_size)]

    def walk(self, first: int, last: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
        """The micro-batches of one rank in steps `first` up to, not including, `last`."""
        for step in range(first, last):
            yield from self.micro_batches(step, rank, world_size)


def evaluation_batches(rows: np.ndarray, batch_size: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
    """Every row exactly once over all ranks: batches cut in order, taken in turn, the last one smaller if need be.

    The cut doesn't depend on the world size, so neither does any kernel's rounding.
    """
    for number in range(rank, -(-len(rows) // batch_size), world_size):
        yield MicroBatch(number, rows[number * batch_size : (number + 1) * batch_size])


def draw_seed(seed: int, step: int, micro_batch: int) -> int:
    """The seed of all random draws (dropout, drop path) in one micro-batch: from its position, never from the rank."""
    return int(np.random.SeedSequence(seed, spawn_key=(step, micro_batch)).generate_state(1, np.uint64)[0])


@lru_cache(maxsize=2)  # a training loop is in one epoch, its read-ahead may be in the next
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    # Philox is counter-based and its stream is fixed by numpy's compatibility policy for bit generators.
    key = np.random.SeedSequence(seed, spawn_key=(epoch,))  # a list of numbers would be padded with zeros
    return np.random.Generator(np.random.Philox(key)).permutation(length)
