"""The plan: coverage, disjoint ranks, the same samples on any number of ranks, arithmetic resume."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdtrain.config import UserError
from fdtrain.data.plan import TrainPlan, draw_seed, evaluation_batches


@st.composite
def plans(draw: st.DrawFn) -> tuple[TrainPlan, int]:
    """A plan and a world size that suits it."""
    micro, world_size, accumulation = draw(st.integers(1, 8)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    batch = micro * world_size * accumulation
    length = draw(st.integers(batch, 4 * batch + 7))
    rows = np.arange(100, 100 + length)  # row numbers of a split don't begin at 0
    return TrainPlan(rows, draw(st.integers(0, 2**32)), batch, micro), world_size


@given(plans())
def test_an_epoch_visits_every_row_once_but_the_incomplete_batch(case: tuple[TrainPlan, int]) -> None:
    plan, _ = case
    seen = np.concatenate([plan.global_batch(step) for step in range(plan.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen) == plan.steps_per_epoch * plan.global_batch_size
    assert set(seen) <= set(plan.rows)
    assert len(plan.rows) - len(seen) < plan.global_batch_size


@given(plans(), st.integers(0, 50))
def test_ranks_share_the_global_batch_without_overlap(case: tuple[TrainPlan, int], step: int) -> None:
    plan, world_size = case
    parts = [part for rank in range(world_size) for part in plan.micro_batches(step, rank, world_size)]
    parts.sort(key=lambda part: part.number)
    assert [part.number for part in parts] == list(range(len(parts)))
    # The same micro-batches, in the same order, as one rank alone would see.
    np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), plan.global_batch(step))


@given(plans(), st.integers(0, 20), st.integers(0, 5))
def test_a_resumed_walk_is_the_rest_of_the_whole_walk(case: tuple[TrainPlan, int], first: int, more: int) -> None:
    plan, world_size = case
    whole = [part.rows.tolist() for part in plan.walk(0, first + more, 0, world_size)]
    rest = [part.rows.tolist() for part in plan.walk(first, first + more, 0, world_size)]
    assert whole[len(whole) - len(rest) :] == rest


def test_the_order_changes_with_the_epoch_and_the_seed_and_nothing_else() -> None:
    rows = np.arange(64)
    plan, same, other = TrainPlan(rows, 1, 64, 8), TrainPlan(rows, 1, 64, 8), TrainPlan(rows, 2, 64, 8)
    assert plan.global_batch(0).tolist() == same.global_batch(0).tolist()
    assert plan.global_batch(0).tolist() != plan.global_batch(1).tolist()
    assert plan.global_batch(0).tolist() != other.global_batch(0).tolist()


def test_a_split_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.global_batch_size: 64 is more than the 10 samples"):
        TrainPlan(np.arange(10), 0, 64, 8)


@given(st.integers(0, 100), st.integers(1, 9), st.integers(1, 7))
def test_evaluation_covers_every_row_once_in_batches_that_ignore_the_world_size(
    length: int, batch_size: int, world_size: int
) -> None:
    rows = np.arange(length) * 3
    parts = [part for rank in range(world_size) for part in evaluation_batches(rows, batch_size, rank, world_size)]
    parts.sort(key=lambda part: part.number)
    alone = list(evaluation_batches(rows, batch_size, 0, 1))
    assert [part.rows.tolist() for part in parts] == [part.rows.tolist() for part in alone]
    assert np.concatenate([part.rows for part in parts] or [rows]).tolist() == rows.tolist()


@given(st.integers(0, 1000), st.integers(0, 10**6), st.integers(0, 100))
def test_draw_seeds_differ_between_neighbours(seed: int, step: int, micro_batch: int) -> None:
    neighbours = {(seed, step, micro_batch), (seed + 1, step, micro_batch), (seed, step + 1, micro_batch)}
    neighbours.add((seed, step, micro_batch + 1))
    assert len({draw_seed(*position) for position in neighbours}) == 4
