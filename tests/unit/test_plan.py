"""The plan: coverage, disjoint ranks, the same samples on any number of ranks, balance, arithmetic resume."""

from itertools import permutations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_shards.columns import Columns
from datasets_shards.frames.choice import evenly_spaced
from datasets_shards.schema import INDEX_SCHEMA, label_of, sample_key
from fdtrain.config import UserError
from fdtrain.data.draws import BUFFER_BLOCKS, draws, hash64, permute, permute_blocks, philox4x32
from fdtrain.data.plan import MicroBatch, PlanSettings, TrainPlan, default_buffer_blocks, draw_seed, evaluation_batches
from fdtrain.data.rows import balance_groups, select_rows

BALANCED = PlanSettings(balance="class")


@st.composite
def plans(draw: st.DrawFn, balance: str | None = None) -> tuple[TrainPlan, int, np.ndarray | None]:
    """A plan, a world size that suits it, and its groups."""
    micro, world_size, accumulation = draw(st.integers(1, 8)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    batch = micro * world_size * accumulation
    length = draw(st.integers(max(batch, 2), 4 * batch + 7))
    chosen = PlanSettings(
        shuffle=draw(st.sampled_from(["full", "blocks"])),
        block_samples=draw(st.integers(1, 12)),
        balance=balance or draw(st.sampled_from(["none", "class", "method"])),
        quality_weights=draw(st.sampled_from([(1.0,), (3.0, 1.0), (0.2, 0.3, 0.5)])),
    )
    groups = None
    if chosen.balance != "none":
        generator = np.random.default_rng(draw(st.integers(0, 2**32)))
        groups = generator.integers(0, 5, length) ** draw(st.integers(1, 3))  # some are small, some are missing
        groups[:2] = 0, 1
    rows = np.arange(100, 100 + length)  # row numbers of a split don't begin at 0
    return TrainPlan(rows, draw(st.integers(0, 2**63 - 1)), batch, micro, chosen, groups), world_size, groups


Case = tuple[TrainPlan, int, np.ndarray | None]


def epoch_rows(plan: TrainPlan, epoch: int) -> np.ndarray:
    first = epoch * plan.steps_per_epoch
    return np.concatenate([plan.global_batch(step) for step in range(first, first + plan.steps_per_epoch)])


@given(plans(balance="none"), st.integers(0, 1000))
def test_an_epoch_visits_every_row_once_but_the_incomplete_batch(case: Case, epoch: int) -> None:
    plan = case[0]
    seen = epoch_rows(plan, epoch)
    assert len(np.unique(seen)) == len(seen) == plan.steps_per_epoch * plan.global_batch_size
    assert set(seen) <= set(plan.rows)
    assert len(plan.rows) - len(seen) == plan.dropped_per_epoch < plan.global_batch_size


@given(plans(), st.integers(0, 50))
def test_ranks_share_the_global_batch_without_overlap(case: Case, step: int) -> None:
    plan, world_size, _ = case
    parts = [part for rank in range(world_size) for part in plan.micro_batches(step, rank, world_size)]
    parts.sort(key=lambda part: part.number)
    assert [part.number for part in parts] == list(range(len(parts)))
    # The same micro-batches, in the same order, as one rank alone would see.
    np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), plan.global_batch(step))
    positions = np.concatenate([part.positions for part in parts])
    first = step // plan.steps_per_epoch * len(plan.rows) + step % plan.steps_per_epoch * plan.global_batch_size
    assert positions.tolist() == list(range(first, first + plan.global_batch_size))
    alone = plan.micro_batches(step, 0, 1)
    assert [part.qualities.tolist() for part in parts] == [part.qualities.tolist() for part in alone]


@given(plans(), st.integers(0, 30), st.data())
def test_the_global_batch_ignores_how_it_is_divided(case: Case, step: int, data: st.DataObject) -> None:
    plan, _, groups = case
    sizes = [size for size in range(1, plan.global_batch_size + 1) if plan.global_batch_size % size == 0]
    micro = data.draw(st.sampled_from(sizes))
    other = TrainPlan(plan.rows, plan.seed, plan.global_batch_size, micro, plan.settings, groups)
    world_size = data.draw(st.sampled_from([size for size in sizes if plan.global_batch_size // micro % size == 0]))
    shares = [other.micro_batches(step, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1  # the same accumulation on each rank
    together = sorted((part for share in shares for part in share), key=lambda part: part.number)
    one = plan.micro_batches(step, 0, 1)
    for field in ("rows", "positions", "qualities"):
        mine = np.concatenate([getattr(part, field) for part in together])
        np.testing.assert_array_equal(mine, np.concatenate([getattr(part, field) for part in one]))
    np.testing.assert_array_equal(np.concatenate([part.rows for part in together]), plan.global_batch(step))


@given(plans(), st.integers(0, 20), st.integers(0, 5))
def test_a_resumed_walk_is_the_rest_of_the_whole_walk(case: Case, first: int, more: int) -> None:
    plan, world_size, _ = case
    whole = [part.rows.tolist() for part in plan.walk(0, first + more, 0, world_size)]
    rest = [part.rows.tolist() for part in plan.walk(first, first + more, 0, world_size)]
    assert whole[len(whole) - len(rest) :] == rest


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_a_step_costs_the_same_wherever_it_is(shuffle: str) -> None:
    rows = np.broadcast_to(np.int64(7), 2**40)  # an array of this length could not be allocated, let alone walked
    plan = TrainPlan(rows, 1, 2**20, 16, PlanSettings(shuffle=shuffle))  # type: ignore[arg-type]
    step = 10**6 * plan.steps_per_epoch + plan.steps_per_epoch // 2
    (part,) = plan.micro_batches(step, 1000, 2**16)
    assert part.rows.tolist() == [7] * 16
    assert part.positions.tolist() == list(range(10**6 * 2**40 + 2**39 + 16000, 10**6 * 2**40 + 2**39 + 16016))


@given(plans(balance="class"), st.integers(0, 100))
def test_groups_differ_by_at_most_one_at_each_place_and_so_do_the_rows_of_one(case: Case, epoch: int) -> None:
    plan, _, groups = case
    assert groups is not None
    seen = epoch_rows(plan, epoch)
    names = np.unique(groups)
    counts = np.cumsum(groups[seen - 100][:, None] == names, axis=0)
    assert (np.ptp(counts, axis=1) <= 1).all()
    times = np.bincount(seen - 100, minlength=len(plan.rows))
    for name in names:
        assert np.ptp(times[groups == name]) <= 1


def test_an_epoch_leaves_out_other_rows_of_a_large_group_each_time() -> None:
    groups = np.repeat([0, 1], [80, 320])
    plan = TrainPlan(np.arange(400), 5, 40, 8, BALANCED, groups)
    epochs = [set(epoch_rows(plan, epoch)) for epoch in range(16)]
    assert all(len(epoch) == 80 + 200 for epoch in epochs)  # each of the rare rows, and 200 of the 320 others
    assert len({frozenset(epoch) for epoch in epochs}) == 16
    assert set.union(*epochs) == set(range(400))  # 3/8 missing 16 times over: 5e-5 rows expected


def test_the_incomplete_batch_drops_other_rows_each_time() -> None:
    for shuffle in ("full", "blocks"):
        plan = TrainPlan(np.arange(100), 5, 30, 10, PlanSettings(shuffle=shuffle, block_samples=4))
        dropped = [set(range(100)) - set(epoch_rows(plan, epoch)) for epoch in range(100)]
        assert all(len(rows) == 10 for rows in dropped)
        assert set.union(*dropped) == set(range(100))


def test_no_rank_is_dealt_one_class_only() -> None:
    groups = np.tile([0, 1], 500)
    plan = TrainPlan(np.arange(1000), 3, 2, 1, BALANCED, groups)
    fakes = sum(int(groups[part.rows[0]]) for part in plan.walk(0, 500, 0, 2))
    assert 200 < fakes < 300


def test_the_order_changes_with_the_epoch_and_the_seed_and_nothing_else() -> None:
    rows = np.arange(64)
    for chosen in (PlanSettings(), PlanSettings(shuffle="blocks", block_samples=8)):
        plan, same, other = (TrainPlan(rows, seed, 64, 8, chosen) for seed in (1, 1, 2))
        assert plan.global_batch(0).tolist() == same.global_batch(0).tolist()
        assert plan.global_batch(0).tolist() != plan.global_batch(1).tolist()
        assert plan.global_batch(0).tolist() != other.global_batch(0).tolist()


def test_the_order_is_the_one_that_saved_runs_go_on_with() -> None:
    rows, groups = np.arange(10), np.repeat([0, 1], [3, 7])
    blocks = PlanSettings(shuffle="blocks", block_samples=1)
    mixed = TrainPlan(rows, 7, 10, 10, PlanSettings(quality_weights=(1, 1, 2)))
    assert TrainPlan(rows, 7, 10, 10).global_batch(1).tolist() == [1, 3, 7, 8, 2, 4, 9, 5, 0, 6]
    assert TrainPlan(rows, 7, 10, 10, blocks).global_batch(1).tolist() == [9, 4, 8, 7, 2, 1, 5, 3, 6, 0]
    assert TrainPlan(rows, 7, 10, 10, BALANCED, groups).global_batch(1).tolist() == [7, 2, 0, 3, 1, 6, 1, 9, 4, 2]
    assert mixed.micro_batches(1, 0, 1)[0].qualities.tolist() == [2, 2, 1, 0, 0, 0, 2, 2, 1, 2]


def test_a_split_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.global_batch_size: 64 is more than the 10 samples"):
        TrainPlan(np.arange(10), 0, 64, 8)


def test_one_class_alone_is_not_balanced() -> None:
    with pytest.raises(UserError, match=r"data\.balance: 'class' needs two groups"):
        TrainPlan(np.arange(10), 0, 4, 2, BALANCED, np.ones(10, np.int8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shuffle": "half"}, r"data\.shuffle: 'half' is unknown; choose full or blocks"),
        ({"balance": "video"}, r"data\.balance: 'video' is unknown; choose none, class or method"),
        ({"block_samples": 0}, r"data\.block_samples: 0 is out of range"),
        ({"buffer_blocks": 0}, r"data\.buffer_blocks: 0 is out of range"),
        ({"quality_weights": ()}, r"data\.mix: 0 qualities"),
        ({"quality_weights": (1.0, 0.0)}, r"data\.mix: the weight 0\.0 is out of range"),
        ({"quality_weights": (float("nan"),)}, r"data\.mix: the weight nan"),
    ],
)
def test_settings_out_of_range_are_named(values: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        PlanSettings(**values)


def test_weights_of_any_size_are_shares() -> None:
    qualities = {}
    for large in (1e308, 1.0, 5e-324):
        plan = TrainPlan(np.arange(1000), 0, 1000, 1000, PlanSettings(quality_weights=(large, large)))
        qualities[large] = plan.micro_batches(0, 0, 1)[0].qualities.tolist()
    assert qualities[1e308] == qualities[1.0] == qualities[5e-324]
    assert 400 < sum(qualities[1.0]) < 600


def test_a_substitute_is_written_into_the_batch_alone() -> None:
    """A loader writes there in place of a bad sample, whose position is the key of its draws."""
    rows = np.arange(4)
    (part,) = evaluation_batches(rows, 4, 0, 1)
    for batch in (MicroBatch.of(rows), part):
        batch.rows[1] = 9
        assert batch.positions.tolist() == rows.tolist() == [0, 1, 2, 3]


def test_qualities_come_as_often_as_their_weights_say() -> None:
    plan = TrainPlan(np.arange(20000), 4, 20000, 20000, PlanSettings(quality_weights=(2, 1, 5)))
    (first,), (second,) = plan.micro_batches(0, 0, 1), plan.micro_batches(1, 0, 1)
    assert first.qualities.dtype == np.int8
    for part in (first, second):
        shares = np.bincount(part.qualities, minlength=3) / 20000
        np.testing.assert_allclose(shares, [0.25, 0.125, 0.625], atol=0.015)  # 4 standard deviations
    assert (first.qualities != second.qualities).any()


@given(plans(), st.integers(0, 10), st.integers(0, 3))
def test_a_substitute_is_of_the_same_group(case: Case, step: int, attempt: int) -> None:
    plan, _, groups = case
    part = plan.micro_batches(step, 0, 1)[0]
    found = plan.substitutes(part.positions, attempt)
    assert set(found) <= set(plan.rows)
    np.testing.assert_array_equal(found[-1:], plan.substitutes(part.positions[-1:], attempt))
    if groups is not None:
        np.testing.assert_array_equal(groups[found - 100], groups[part.rows - 100])


def test_each_attempt_at_a_substitute_is_another() -> None:
    plan = TrainPlan(np.arange(10**6), 0, 4, 4)
    attempts = [plan.substitutes(np.arange(4), attempt).tolist() for attempt in range(8)]
    assert len({row for rows in attempts for row in rows}) == 32


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
    assert all(rows[part.positions].tolist() == part.rows.tolist() for part in parts)
    assert all(part.qualities.tolist() == [0] * len(part.rows) for part in parts)


@given(st.integers(0, 1000), st.integers(0, 10**6), st.integers(0, 100))
def test_draw_seeds_differ_between_neighbours(seed: int, step: int, micro_batch: int) -> None:
    neighbours = {(seed, step, micro_batch), (seed + 1, step, micro_batch), (seed, step + 1, micro_batch)}
    neighbours.add((seed, step, micro_batch + 1))
    assert len({draw_seed(*position) for position in neighbours}) == 4


# Random123's known answers (its file kat_vectors): counter, key, result.
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    words = [np.array([int(word, 16) for word in text.split()], np.uint64) for text in (counter, key, expected)]
    np.testing.assert_array_equal(philox4x32(words[0], (int(words[1][0]), int(words[1][1]))), words[2])
    np.testing.assert_array_equal(
        philox4x32(np.tile(words[0], (2, 3, 1)), (int(words[1][0]), int(words[1][1])))[1, 2], words[2]
    )


def test_hash64_begins_as_splitmix64() -> None:
    assert hash64(0).tolist() == [0xE220A8397B1DCDAF]  # the generator's first output from seed 0
    assert len(np.unique(hash64(1, np.arange(100)[:, None], np.arange(100)))) == 10000


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**62), min_size=1, max_size=9), st.integers(1, 9))
def test_a_draw_depends_on_its_position_alone(seed: int, places: list[int], n: int) -> None:
    positions = np.array(places)
    numbers = draws(seed, positions, 3, n)
    assert numbers.shape == (len(places), n)
    assert numbers.dtype == np.float64
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    np.testing.assert_array_equal(draws(seed, positions[::-1], 3, n + 2)[::-1, :n], numbers)
    np.testing.assert_array_equal(draws(seed, positions[-1:], 3, n), numbers[-1:])


def test_draws_are_uniform_and_unrelated_between_positions_numbers_streams_and_seeds() -> None:
    positions = np.arange(20000)
    columns = np.concatenate(
        [
            draws(8, positions, 1, 3),
            draws(8, positions + 1, 1, 1),
            draws(8, positions, 2, 1),
            draws(9, positions, 1, 1),
            draws(8, positions + 2**32, 1, 1),
            draws(8 + 2**32, positions, 1, 1),
        ],
        axis=1,
    )
    histograms = np.stack([np.histogram(column, 20, (0, 1))[0] for column in columns.T])
    assert np.abs(histograms - 1000).max() < 5 * 1000**0.5
    related = np.corrcoef(columns.T) - np.eye(8)
    assert np.abs(related).max() < 5 / 20000**0.5


@settings(max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(1, 400))
def test_permutations_are_permutations_of_any_length(length: int, key: int, block: int) -> None:
    places = np.arange(length)
    for images in (permute(places, length, key), permute_blocks(places, length, key, block)):
        assert np.sort(images).tolist() == places.tolist()


def test_each_permutation_of_few_is_equally_frequent() -> None:
    keys, count = hash64(99, np.arange(24000)), 24000
    for length in (2, 3, 4):
        images = np.stack([permute(np.full(count, place), length, keys) for place in range(length)], axis=1)
        orders = list(permutations(range(length)))
        seen = np.array([(images == order).all(axis=1).sum() for order in orders])
        expected = count / len(orders)
        assert np.abs(seen - expected).max() < 5 * expected**0.5


def test_a_large_permutation_has_no_trace_of_the_order() -> None:
    length, places = 1_800_000, np.arange(50_000)
    images = permute(places, length, 5)
    assert abs(np.corrcoef(places, images)[0, 1]) < 5 / 50_000**0.5
    assert abs(np.corrcoef(images[1:], images[:-1])[0, 1]) < 5 / 50_000**0.5
    assert np.abs(np.histogram(images, 50, (0, length))[0] - 1000).max() < 5 * 1000**0.5
    assert abs(np.corrcoef(images, permute(places, length, 6))[0, 1]) < 5 / 50_000**0.5


@given(st.integers(1, 2000), st.integers(1, 40), st.integers(0, 2**64 - 1), st.integers(1, 12))
def test_blocks_are_read_few_at_a_time(length: int, block: int, key: int, buffer: int) -> None:
    blocks = permute_blocks(np.arange(length), length, key, block, buffer) // min(block, length)
    stretch = buffer * block
    open_blocks = sorted(len(np.unique(blocks[first : first + stretch])) for first in range(0, length, stretch))
    assert all(count <= buffer for count in open_blocks[:-1])
    assert open_blocks[-1] <= (buffer if length % block == 0 else 2 * buffer)


def test_a_buffer_mixes_enough_videos_whatever_their_length() -> None:
    """FF++'s methods take turns in a shard: 720 pairs of 5 videos, 270 frames each, 64 steps of 128."""
    frames = 270
    assert default_buffer_blocks(1024, 32) == BUFFER_BLOCKS  # as before that followed from the frames
    shares = []
    for blocks in (BUFFER_BLOCKS, default_buffer_blocks(1024, frames)):
        chosen = PlanSettings("blocks", buffer_blocks=blocks)
        plan = TrainPlan(np.arange(720 * 5 * frames), 0, 64 * 128, 64 * 128, chosen)
        real = [(plan.global_batch(step) // frames % 5 == 0).mean() for step in range(plan.steps_per_epoch)]
        shares.append((min(real), max(real)))
    (low, high), (lowest, highest) = shares
    assert low < 0.12  # what fewer videos would do
    assert high > 0.24
    assert lowest > 0.15
    assert highest < 0.24


def test_blocks_and_their_samples_are_shuffled() -> None:
    images = permute_blocks(np.arange(16000), 16000, 1, 100)
    assert (np.diff(images) == 1).mean() < 0.01
    stretches = images.reshape(-1, BUFFER_BLOCKS * 100)
    firsts = np.sort(stretches // 100, axis=1)[:, ::100]
    assert (np.diff(firsts, axis=1) > 1).mean() > 0.7  # a stretch's blocks aren't neighbours themselves


METHODS = ("youtube", "Deepfakes", "NeuralTextures")


def make_table(targets: int = 20, frames: int = 7) -> pa.Table:
    """Two thirds training videos, in an order of the frames that isn't theirs."""
    rows = []
    for target in range(targets):
        for method in METHODS:
            video = f"{target:03d}" if method == "youtube" else f"{target:03d}_{(target + 1) % targets:03d}"
            count = frames if target % 4 else 3
            for frame in np.random.default_rng(target).permutation(count):
                rows.append(
                    {
                        "key": sample_key(method, video, int(frame) * 10),
                        "split": "val" if target % 3 == 2 else "train",
                        "shard": "train-000000.tar",
                        "offset": 512,
                        "size": 100,
                        "label": label_of(method),
                        "method": method,
                        "video": video,
                        "target": f"{target:03d}",
                        "source": "" if method == "youtube" else f"{(target + 1) % targets:03d}",
                        "frame": int(frame) * 10,
                        "width": 8,
                        "height": 8,
                    }
                )
    return pa.Table.from_pylist(rows, INDEX_SCHEMA)


def as_index(table: pa.Table) -> Columns:
    """In two row groups, each with its own dictionaries."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=max(1, -(-table.num_rows // 2)))
    return Columns(sink.getvalue().to_pybytes(), INDEX_SCHEMA)


INDEX = as_index(make_table())
TABLE = make_table().to_pandas()


def test_a_split_alone_takes_all_of_its_rows() -> None:
    assert select_rows(INDEX, "val").tolist() == np.flatnonzero(TABLE["split"] == "val").tolist()


@given(st.integers(1, 9), st.sets(st.sampled_from(METHODS), min_size=1))
def test_frames_are_evenly_spaced_as_pack_takes_them(count: int, methods: set[str]) -> None:
    rows = select_rows(INDEX, "train", methods=sorted(methods), frames_per_video=count)
    assert (np.diff(rows) > 0).all()
    expected = set()
    chosen = TABLE[(TABLE["split"] == "train") & TABLE["method"].isin(methods)]
    for _, video in chosen.groupby(["method", "video"], observed=True):
        in_order = video.sort_values("frame").index
        expected |= {in_order[place] for place in evenly_spaced(len(in_order), count)}
    assert set(rows) == expected


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 2**63 - 1))
def test_a_smaller_fraction_of_videos_is_inside_a_larger_one(one: float, other: float, seed: int) -> None:
    small, large = (
        select_rows(INDEX, "train", videos_fraction=fraction, seed=seed) for fraction in sorted([one, other])
    )
    assert set(small) <= set(large)
    targets = set(TABLE["target"][small])
    assert len(targets) == max(1, round(min(one, other) * 14))
    whole = np.flatnonzero(TABLE["target"].isin(targets) & (TABLE["split"] == "train"))
    assert small.tolist() == whole.tolist()  # a real video and all its fakes, with all their frames
    fakes = select_rows(INDEX, "train", videos_fraction=min(one, other), seed=seed, methods=["Deepfakes"])
    assert set(TABLE["target"][fakes]) == targets


def test_the_fraction_depends_on_the_seed() -> None:
    chosen = {tuple(select_rows(INDEX, "train", videos_fraction=0.5, seed=seed)) for seed in range(5)}
    assert len(chosen) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "test"}, "the split 'test' has no samples"),
        ({"methods": ["Face2Face"]}, r"data\.methods: 'Face2Face' is not in the split 'train', which has .*youtube"),
        ({"methods": ["deepfakes"]}, r"data\.methods: 'deepfakes' is unknown to the split 'train'"),
        ({"methods": []}, r"data\.methods, data\.videos_fraction: no sample of the split 'train' is left"),
        ({"frames_per_video": 0}, r"data\.frames_per_video: 0 is out of range"),
        ({"videos_fraction": 0.0}, r"data\.videos_fraction: 0\.0 is out of range"),
        ({"videos_fraction": float("nan")}, r"data\.videos_fraction: nan is out of range"),
    ],
)
def test_a_selection_that_can_not_be_is_one_clear_line(values: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message) as caught:
        select_rows(INDEX, **{"split": "train"} | values)
    assert "\n" not in str(caught.value)


def test_an_index_without_rows_has_no_split() -> None:
    with pytest.raises(UserError, match="the split 'train' has no samples"):
        select_rows(as_index(INDEX_SCHEMA.empty_table()), "train")


def test_groups_are_labels_or_methods() -> None:
    rows = select_rows(INDEX, "train")
    assert balance_groups(INDEX, rows, "none") is None
    by_class, by_method = balance_groups(INDEX, rows, "class"), balance_groups(INDEX, rows, "method")
    assert by_class is not None
    assert by_method is not None
    np.testing.assert_array_equal(by_class, TABLE["label"][rows])
    pairs = set(zip(by_method.tolist(), TABLE["method"][rows], strict=True))
    assert len(pairs) == len(METHODS)
    plan = TrainPlan(rows, 0, 30, 10, PlanSettings(balance="method"), by_method)
    methods, counts = np.unique(TABLE["method"].to_numpy()[plan.global_batch(0)], return_counts=True)
    assert set(methods) == set(METHODS)
    assert counts.tolist() == [10, 10, 10]
