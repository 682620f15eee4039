"""Which tars a training has in use at a time: against a simulated cache, and what is told ahead."""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_shards.columns import Columns
from datasets_shards.schema import INDEX_SCHEMA, Manifest, ShardSet, TarEntry
from fdtrain.config import UserError
from fdtrain.data.plan import PlanSettings, Shuffle, TrainPlan
from fdtrain.data.remote import OpenedSet
from fdtrain.data.rows import Balance
from fdtrain.data.tars import Tars
from fdtrain.data.working_set import AHEAD_SHARE, TrainingTars, check_cache_fits, walk_ahead

SAMPLES, PER_TAR, TAR_BYTES = 60_000, 500, 1000
"""120 tars; a video has 20 samples, and its method is its number modulo 5."""


class Told(Tars):
    """Tars that note what is said to be coming."""

    def __init__(self, tars: dict[str, TarEntry]) -> None:
        super().__init__("nowhere", tars, "")
        self.names: list[str] = []

    def prepare(self, names: Iterable[str]) -> None:
        self.names += names

    def _open_tar(self, name: str, entry: TarEntry) -> int:
        raise AssertionError(name)

    def _opened(self) -> None:
        raise AssertionError


@pytest.fixture(scope="module")
def index() -> Columns:
    names = [f"train-{number:06d}.tar" for number in range(SAMPLES // PER_TAR)]
    shards = pa.DictionaryArray.from_arrays(pa.array(np.arange(SAMPLES, dtype=np.int32) // PER_TAR), names)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"shard": shards}), sink)
    return Columns(sink.getvalue().to_pybytes(), INDEX_SCHEMA)


def training(
    index: Columns, shuffle: Shuffle, qualities: int = 1, balance: Balance = "none"
) -> tuple[TrainPlan, int, TrainingTars]:
    """A plan, its groups, and the tars of as many sets as there are qualities."""
    listed = {name: TarEntry("", TAR_BYTES, PER_TAR) for name in index.codes("shard")[1]}
    manifest = Manifest(77, {}, {}, {}, {}, {}, listed, "")
    sets = [OpenedSet(ShardSet(Path(), manifest, index), Told(listed)) for _ in range(qualities)]
    method = np.arange(SAMPLES) // 20 % 5
    groups = {"none": None, "class": method > 0, "method": method}[balance]
    settings = PlanSettings(shuffle, 512 if shuffle == "blocks" else 1024, balance, (1.0,) * qualities)
    plan = TrainPlan(np.arange(SAMPLES), 0, 64, 16, settings, groups)
    return plan, 1 if groups is None else len(np.unique(groups)), TrainingTars(sets)


def needed(plan: TrainPlan, groups: int, tars: TrainingTars) -> int:
    """What the message of a refusal names."""
    with pytest.raises(UserError, match=r"data\.cache_bytes: 1 is less than") as refused:
        check_cache_fits(1, plan, groups, tars)
    return int(str(refused.value).split("raise it to ")[1].split(",")[0])


def fetches(reads: list[int], room: int) -> int:
    """Of a cache of so many tars from which the least recently used go."""
    held: OrderedDict[int, None] = OrderedDict()
    count = 0
    for tar in reads:
        count += tar not in held
        held[tar] = None
        held.move_to_end(tar)
        if len(held) > room:
            held.popitem(last=False)
    return count


@pytest.mark.parametrize(
    ("qualities", "balance"), [(1, "none"), (2, "none"), (1, "class"), (1, "method")], ids=lambda value: str(value)
)
def test_the_size_named_is_enough_and_half_of_it_is_not(index: Columns, qualities: int, balance: Balance) -> None:
    """Enough: most tars are fetched once for each of the blocks that reach into them, about twice an epoch."""
    plan, groups, tars = training(index, "blocks", qualities, balance)
    enough = needed(plan, groups, tars)
    check_cache_fits(enough, plan, groups, tars)
    reads: list[int] = []
    for batch in plan.walk(0, 600, 0, 1):
        reads += (batch.rows // PER_TAR * qualities + batch.qualities).tolist()
    least = len(set(reads))
    assert fetches(reads, enough // TAR_BYTES) < 3.5 * least
    assert fetches(reads, enough // TAR_BYTES // 2) > 2 * fetches(reads, enough // TAR_BYTES)


def test_a_full_shuffle_needs_the_tars_of_its_rows(index: Columns) -> None:
    plan, groups, tars = training(index, "full", 2)
    assert needed(plan, groups, tars) == 240 * TAR_BYTES
    part = TrainPlan(np.arange(0, SAMPLES, 5 * PER_TAR).repeat(10), 0, 64, 16, plan.settings)
    assert needed(part, 1, tars) == 48 * TAR_BYTES


def test_tars_are_told_in_time_and_not_too_many(index: Columns) -> None:
    plan, _, tars = training(index, "blocks", 2)
    told: list[list[str]] = [each.names for each in tars._tars]  # type: ignore[attr-defined]
    room = 100 * TAR_BYTES
    seen: list[set[int]] = [set(), set()]
    first_told = 0
    for number, batch in enumerate(walk_ahead(plan.walk(0, 300, 0, 1), tars, room)):
        for quality in (0, 1):
            seen[quality] |= set((batch.rows[batch.qualities == quality] // PER_TAR).tolist())
            assert {f"train-{tar:06d}.tar" for tar in seen[quality]} <= set(told[quality])
        if not number:
            first_told = len(told[0]) + len(told[1])
    assert number == 300 * 4 - 1
    assert 0.9 * AHEAD_SHARE * 100 <= first_told <= AHEAD_SHARE * 100 + 16  # a batch may be over
    assert len(told[0]) + len(told[1]) > first_told
