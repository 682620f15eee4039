"""The sample plan: which rows form which batch, from integers alone.

The global batch of a step is a function of (rows, settings, seed, step). Micro-batches are cut from it in order,
whatever the world size, and ranks take them in turn. So a run resumes by arithmetic, nothing is replayed, and a run on
another number of ranks sees the same samples in the same order, grouped into the same micro-batches. Any place of any
epoch is computed by itself: a rank pays for its own share of a step, and a new epoch costs nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from fdtrain.config import UserError
from fdtrain.data.draws import BUFFER_BLOCKS, QUALITY_STREAM, draws, hash64, permute, permute_blocks
from fdtrain.data.rows import Balance

Shuffle = Literal["full", "blocks"]

BUFFER_VIDEOS = 256
"""Videos that a buffer of shuffled blocks should mix. Of 3600 videos of 270 frames, one in five real, in batches of
128, the share of real samples in 64 steps is then 16 to 22 %; with 30 videos it is 10 to 26 %."""

# First words of the keys, so that no two uses of the seed share one.
_ORDER, _TURN, _SUBSTITUTE = 1, 2, 3


class MicroBatch(NamedTuple):
    """The rows of one forward pass, and its number within the global batch (the key of its random draws).

    `positions`, int64 `[B]`, are the samples' places in the whole run, each used once: the key of a sample's own draws.
    `qualities`, int8 `[B]`, say which of the mixed qualities each sample is read at (0 where there is one).
    """

    number: int
    rows: np.ndarray
    positions: np.ndarray
    qualities: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> "MicroBatch":
        """Rows at the first quality, each at its own row number as position: what is read outside of a run."""
        # Copies, since a loader writes substitutes into the rows.
        return cls(0, rows.copy(), rows.copy(), np.zeros(len(rows), np.int8))


@dataclass(frozen=True)
class PlanSettings:
    """How an epoch is ordered and what it is made of.

    Args:
        shuffle: `full`: any row may follow any other. `blocks`: rows are read in blocks of neighbours, several blocks
            at a time (`permute_blocks`), which keeps reading mostly sequential.
        block_samples: Rows of a block; with `full` without effect.
        buffer_blocks: Blocks that are read, and mixed with each other, at a time; with `full` without effect.
        balance: `none`: each row once in an epoch. `class`: real and fake equally often; `method`: each method equally
            often.
        quality_weights: How often each of the mixed qualities is drawn, relative to the others.

    Raises:
        UserError: a value is out of range; the message names its configuration key.
    """

    shuffle: Shuffle = "full"
    block_samples: int = 1024
    balance: Balance = "none"
    quality_weights: tuple[float, ...] = (1.0,)
    buffer_blocks: int = BUFFER_BLOCKS

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("data.shuffle", self.shuffle, get_args(Shuffle)),
            ("data.balance", self.balance, get_args(Balance)),
        ):
            if value not in allowed:
                raise UserError(f"{key}: {value!r} is unknown; choose {', '.join(allowed[:-1])} or {allowed[-1]}")
        for key, count in (("data.block_samples", self.block_samples), ("data.buffer_blocks", self.buffer_blocks)):
            if count < 1:
                raise UserError(f"{key}: {count} is out of range; allowed is at least 1")
        if not 1 <= len(self.quality_weights) <= 127:
            raise UserError(f"data.mix: {len(self.quality_weights)} qualities; give 1 to 127")
        for weight in self.quality_weights:
            if not 0 < weight < float("inf"):
                raise UserError(f"data.mix: the weight {weight} is out of range; it is a positive number")


def default_buffer_blocks(block_samples: int, frames_per_video: float) -> int:
    """Blocks of a buffer that holds `BUFFER_VIDEOS` videos, and `BUFFER_BLOCKS` at least."""
    size = max(1, block_samples)  # below 1 it is out of range, which `PlanSettings` says
    return max(BUFFER_BLOCKS, math.ceil(BUFFER_VIDEOS * frames_per_video / size))


class TrainPlan:
    """The order of a training run, drawn anew for each epoch.

    An epoch has as many places as there are rows. Without balance every row has one of them. With balance the places
    are dealt to the groups in turn (each stretch of as many places as there are groups has one of each, in an order
    that is drawn), so up to any place of an epoch the groups' counts differ by at most one. A group smaller than its
    share is gone through several times, each time in another order, so that the counts of two of its rows differ by at
    most one; of a larger group an epoch takes a part, every time another one.

    The last, incomplete global batch of an epoch is always dropped (`dropped_per_epoch` places). As the order changes
    with the epoch, so do the rows that fall out. Evaluation drops nothing: see `evaluation_batches`.

    Args:
        rows: int64 `[N]`, row numbers of the training split, in the order of the index.
        seed: Seed of the order, 0 to 2**63 - 1.
        global_batch_size: Rows of one optimizer step.
        micro_batch_size: Rows of one forward pass; divides `global_batch_size`.
        settings: Shuffle, balance and mix of qualities.
        groups: Whole numbers `[N]`, the group of each row (`rows.balance_groups`), where `settings` ask for balance;
            None otherwise.

    Raises:
        UserError: the split is smaller than one global batch, or there is only one group.
    """

    def __init__(
        self,
        rows: np.ndarray,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        settings: PlanSettings | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        self.rows, self.seed, self.settings = rows, seed, settings or PlanSettings()
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        assert global_batch_size % micro_batch_size == 0
        assert (groups is not None) == (self.settings.balance != "none")
        if len(rows) < global_batch_size:
            raise UserError(
                f"train.global_batch_size: {global_batch_size} is more than the {len(rows)} samples of the "
                "training split; make it smaller"
            )
        self._members = rows  # group by group, each in the order of the index
        self._counts = np.array([len(rows)])
        if groups is not None:
            if groups.shape != rows.shape:
                raise ValueError(f"groups has shape {groups.shape}, rows {rows.shape}")
            self._counts = np.unique(groups, return_counts=True)[1]
            if len(self._counts) < 2:
                raise UserError(
                    f"data.balance: {self.settings.balance!r} needs two groups of training samples and there is one; "
                    "add data.methods, or set data.balance to none"
                )
            self._members = rows[np.argsort(groups, kind="stable")]
        self._starts = np.cumsum(self._counts) - self._counts
        weights = np.array(self.settings.quality_weights)
        shares = np.cumsum(weights / weights.max())  # the largest doubles would add up to infinity
        self._quality_limits = shares / shares[-1]
        self._quality_limits[-1] = 1.0

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return len(self.rows) // self.global_batch_size

    @property
    def dropped_per_epoch(self) -> int:
        """Places at the end of an epoch that fill no whole global batch and are dropped."""
        return len(self.rows) % self.global_batch_size

    def global_batch(self, step: int) -> np.ndarray:
        """int64 `[global_batch_size]`: the rows of optimizer step `step`, counted from 0 through all epochs. O(1)."""
        return self._rows_at(self._first_position(step) + np.arange(self.global_batch_size))

    def micro_batches(self, step: int, rank: int, world_size: int) -> list[MicroBatch]:
        """The share of one rank in step `step`, in the order of its forward passes.

        Its cost is that of the share: it depends on neither the step, the number of rows nor the world size.
        """
        size = self.micro_batch_size
        numbers = np.arange(rank, self.global_batch_size // size, world_size)
        positions = self._first_position(step) + (numbers[:, None] * size + np.arange(size)).ravel()
        rows, qualities = self._rows_at(positions), self._qualities_at(positions)
        return [
            MicroBatch(int(number), rows[part], positions[part], qualities[part])
            for number, part in zip(numbers, (slice(at, at + size) for at in range(0, len(rows), size)), strict=True)
        ]

    def walk(self, first: int, last: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
        """The micro-batches of one rank in steps `first` up to, not including, `last`."""
        for step in range(first, last):
            yield from self.micro_batches(step, rank, world_size)

    def substitutes(self, positions: np.ndarray, attempt: int) -> np.ndarray:
        """Rows that stand in for samples that can't be read: int64 `[B]`, of the same groups, drawn from all of them.

        Args:
            positions: int64 `[B]`, of the samples.
            attempt: 0 for the first substitute, 1 for the substitute of that, and so on.
        """
        group, _ = self._groups_at(positions)
        numbers = hash64(self.seed, _SUBSTITUTE, positions, attempt) % self._counts[group].astype(np.uint64)
        rows: np.ndarray = self._members[self._starts[group] + numbers.astype(np.int64)]
        return rows

    def _first_position(self, step: int) -> int:
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch * len(self.rows) + step_in_epoch * self.global_batch_size

    def _groups_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The group that has each position, and how many positions of the epoch it had before; int64 `[B]` both."""
        epoch, place = np.divmod(positions, len(self.rows))
        turn, slot = np.divmod(place, len(self._counts))
        # Without the rotation one rank could be dealt the same group over and over.
        rotation = hash64(self.seed, _TURN, epoch, turn) % np.uint64(len(self._counts))
        return (slot + rotation.astype(np.int64)) % len(self._counts), turn

    def _rows_at(self, positions: np.ndarray) -> np.ndarray:
        group, turn = self._groups_at(positions)
        count = self._counts[group]
        cycle, place = np.divmod(turn, count)
        keys = hash64(self.seed, _ORDER, positions // len(self.rows), group, cycle)
        if self.settings.shuffle == "full":
            place = permute(place, count, keys)
        else:
            place = permute_blocks(place, count, keys, self.settings.block_samples, self.settings.buffer_blocks)
        rows: np.ndarray = self._members[self._starts[group] + place]
        return rows

    def _qualities_at(self, positions: np.ndarray) -> np.ndarray:
        if len(self._quality_limits) == 1:
            return np.zeros(len(positions), np.int8)
        numbers = draws(self.seed, positions, QUALITY_STREAM, 1)[:, 0]
        return np.searchsorted(self._quality_limits, numbers, side="right").astype(np.int8)


def evaluation_batches(rows: np.ndarray, batch_size: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
    """Every row exactly once over all ranks: batches cut in order, taken in turn, the last one smaller if need be.

    Nothing is dropped, repeated or padded. The cut doesn't depend on the world size, so neither does any kernel's
    rounding. `positions` are the places in `rows`; `qualities` are 0.
    """
    for number in range(rank, -(-len(rows) // batch_size), world_size):
        part = rows[number * batch_size : (number + 1) * batch_size]
        positions = np.arange(number * batch_size, number * batch_size + len(part))
        yield MicroBatch(number, part.copy(), positions, np.zeros(len(part), np.int8))


def draw_seed(seed: int, step: int, micro_batch: int) -> int:
    """The seed of all random draws (dropout, drop path) in one micro-batch: from its position, never from the rank."""
    return int(np.random.SeedSequence(seed, spawn_key=(step, micro_batch)).generate_state(1, np.uint64)[0])
