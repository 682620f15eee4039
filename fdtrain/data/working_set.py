"""Which tars of a store a training has in use at a time, and which it will need next."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fdtrain.config import UserError
from fdtrain.data.plan import MicroBatch, TrainPlan
from fdtrain.data.remote import OpenedSet

LOOKED_AT = 4
"""Epochs whose beginnings `working_set` looks at, some thousand places of each."""
PLACES = 8192

SPARE = 1.5
"""What a cache must hold, as a multiple of the working set: what comes next needs room while what is left is read."""

AHEAD_SHARE = 0.6
"""Of the cache, what the tars of coming batches may take: with less a fetch isn't begun in time, with more it pushes
out what is still being read (by simulation: 180 tars, blocks of 1024)."""

AHEAD_BATCHES = 512


class TrainingTars:
    """The tars of the sets that training reads, numbered through.

    Args:
        opened: The sets, by the plan's number of their quality.
    """

    def __init__(self, opened: Sequence[OpenedSet]) -> None:
        self._tars = [each.tars for each in opened]
        self._shard_of, self._names = zip(*(each.shard_set.index.codes("shard") for each in opened), strict=True)
        counts = [len(names) for names in self._names]
        self._first = np.cumsum(counts) - counts
        entries = zip((each.shard_set.manifest.tars for each in opened), self._names, strict=True)
        self.bytes = np.array([listed[name].bytes for listed, names in entries for name in names], np.int64)
        """int64 `[T]`: the size of each."""

    def used(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of the tars that hold these rows at any quality."""
        used = np.zeros(len(self.bytes), bool)
        for first, shard_of in zip(self._first, self._shard_of, strict=True):
            used[first + shard_of[rows]] = True
        return np.flatnonzero(used)

    def of(self, batch: MicroBatch) -> list[int]:
        """Numbers of the tars that a batch is read from, each once, in the order of the batch."""
        numbers = np.empty(len(batch.rows), np.int64)
        for quality, (first, shard_of) in enumerate(zip(self._first, self._shard_of, strict=True)):
            chosen = batch.qualities == quality
            numbers[chosen] = first + shard_of[batch.rows[chosen]]
        return list(dict.fromkeys(numbers.tolist()))

    def prepare(self, numbers: Iterable[int]) -> None:
        """Let these be on their way."""
        for number in numbers:
            quality = int(np.searchsorted(self._first, number, side="right")) - 1
            self._tars[quality].prepare([self._names[quality][number - self._first[quality]]])


def working_set(plan: TrainPlan, groups: int, tars: TrainingTars) -> int:
    """Bytes of the tars that an epoch of shuffled blocks reads from at a time: the most of what was looked at.

    An epoch's first places are looked at, some of them, in several epochs: there the buffers of all groups begin
    together, and every epoch draws its blocks anew.

    Args:
        plan: With `shuffle` `blocks`.
        groups: Between which it balances; 1 where it doesn't.
        tars: What it reads from.
    """
    places = min(plan.settings.buffer_blocks * plan.settings.block_samples * groups, len(plan.rows))
    steps = max(1, places // plan.global_batch_size)
    taken = min(steps, max(1, PLACES // plan.global_batch_size))
    most = 0
    for epoch in range(LOOKED_AT):
        numbers: set[int] = set()
        for step in np.linspace(0, steps, taken, endpoint=False).astype(int).tolist():
            for batch in plan.micro_batches(epoch * plan.steps_per_epoch + step, 0, 1):
                numbers.update(tars.of(batch))
        most = max(most, int(tars.bytes[list(numbers)].sum()))
    return most


def check_cache_fits(max_bytes: int, plan: TrainPlan, groups: int, tars: TrainingTars) -> None:
    """Refuse a cache that training would fetch the same tars into over and over.

    Validation and test go through the cache as well, but read each tar once, in order, and so need little of it.

    Args:
        max_bytes: Size of the cache.
        plan: The order of training.
        groups: Between which it balances; 1 where it doesn't.
        tars: What it reads from.

    Raises:
        UserError: names the settings that can be changed, and the size that is enough.
    """
    whole = int(tars.bytes[tars.used(plan.rows)].sum())
    if whole <= max_bytes:
        return
    if plan.settings.shuffle == "full":
        raise UserError(
            f"data.cache_bytes: {max_bytes} is less than the {whole} bytes of the training samples' tars, and a full "
            f"shuffle reads all of them all the time; set data.shuffle: blocks, or raise it to {_round_up(whole)}"
        )
    needed = min(whole, int(SPARE * working_set(plan, groups, tars)))
    if needed > max_bytes:
        raise UserError(
            f"data.cache_bytes: {max_bytes} is less than the {needed} bytes that training needs at a time with "
            f"data.shuffle: blocks; raise it to {_round_up(needed)}, or lower data.buffer_blocks"
        )


def walk_ahead(batches: Iterable[MicroBatch], tars: TrainingTars, max_bytes: int) -> Iterator[MicroBatch]:
    """The same batches, each after the tars of what follows it were told to be on their way.

    A tar takes longer to come than the few batches that a loader reads ahead. How far is looked follows from the cache:
    the tars of the batches that are to come add up to `AHEAD_SHARE` of it, or a batch more.

    Args:
        batches: What will be read; cheap to make ahead of time.
        tars: Where from.
        max_bytes: Size of the cache.
    """
    source = iter(batches)
    coming: deque[tuple[MicroBatch, list[int]]] = deque()
    uses: Counter[int] = Counter()  # by tar, the coming batches that read it
    total = 0
    while True:
        while len(coming) < AHEAD_BATCHES and (not coming or total <= AHEAD_SHARE * max_bytes):
            if (batch := next(source, None)) is None:
                break
            numbers = tars.of(batch)
            new = [number for number in numbers if number not in uses]
            tars.prepare(new)
            total += int(tars.bytes[new].sum())
            uses.update(numbers)
            coming.append((batch, numbers))
        if not coming:
            return
        batch, numbers = coming.popleft()
        yield batch
        for number in numbers:
            uses[number] -= 1
            if not uses[number]:
                del uses[number]
                total -= int(tars.bytes[number])


def _round_up(number: int) -> int:
    """To two significant digits."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
