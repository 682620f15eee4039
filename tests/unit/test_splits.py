"""No identity in two splits, whatever the videos."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_shards.errors import InputError
from datasets_shards.schema import SPLITS
from datasets_shards.sources import Video
from datasets_shards.splits import SHARES, SplitPlan, draw_identities, plan_splits

PEOPLE = st.sampled_from([f"{i:03d}" for i in range(30)])


def video(name: str, method: str | None = None) -> Video:
    target, _, source = name.partition("_")
    method = method or ("Deepfakes" if source else "youtube")
    return Video(method, name, target, source, "raw", Path(name), f"{method}/{name}")


def pairs_of(count: int) -> list[Video]:
    """`count` pairs of people, each with two real videos and two fakes."""
    names = [(f"{2 * i:03d}", f"{2 * i + 1:03d}") for i in range(count)]
    return [video(name) for a, b in names for name in (a, b, f"{a}_{b}", f"{b}_{a}")]


def people_by_split(plan: SplitPlan) -> dict[str, set[str]]:
    return {split: {name for v in videos for name in v.identities} for split, videos in plan.videos.items()}


def write_splits(folder: Path, **pairs: list[list[str]]) -> Path:
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        (folder / f"{split}.json").write_text(json.dumps(pairs.get(split, [])))
    return folder


@given(st.lists(st.tuples(PEOPLE, PEOPLE), min_size=1, max_size=40, unique=True), st.integers(0, 5))
def test_a_drawn_split_never_leaks(pairs: list[tuple[str, str]], seed: int) -> None:
    videos = [video(f"{a}_{b}") for a, b in pairs] + [video(name) for name in sorted({n for p in pairs for n in p})]
    plan = plan_splits(videos, None, seed)
    people = people_by_split(plan)
    assert sum(map(len, people.values())) == len(set().union(*people.values()))
    assert sorted(str(v) for split in plan.videos.values() for v in split) == sorted(map(str, videos))


@given(st.integers(3, 60), st.integers(0, 5))
def test_three_groups_are_enough_for_three_splits(count: int, seed: int) -> None:
    assert all(plan_splits(pairs_of(count), None, seed).videos.values())


def test_two_groups_leave_test_empty() -> None:
    plan = plan_splits(pairs_of(2), None, 0)
    assert [bool(plan.videos[split]) for split in SPLITS] == [True, True, False]


def test_shares_and_seed() -> None:
    videos = pairs_of(500)
    plan = plan_splits(videos, None, 0)
    for split, share in SHARES.items():
        assert len(plan.videos[split]) / len(videos) == pytest.approx(share, abs=0.005)
    assert draw_identities(videos, 0) == draw_identities(videos, 0) != draw_identities(videos, 1)


def test_official_files(tmp_path: Path) -> None:
    folder = write_splits(tmp_path, train=[["000", "001"]], val=[["002", "003"]])
    plan = plan_splits(pairs_of(3), folder, 0)
    assert {split: {v.name for v in videos} for split, videos in plan.videos.items()} == {
        "train": {"000", "001", "000_001", "001_000"},
        "val": {"002", "003", "002_003", "003_002"},
        "test": set(),
    }
    assert {v.name for v in plan.skipped} == {"004", "005", "004_005", "005_004"}
    assert set(plan.origin["files"]) == {"train.json", "val.json", "test.json"}


def test_actors_are_for_testing_only() -> None:
    actors = [video("01__a", "actors"), video("01_02__a", "DeepFakeDetection")]
    plan = plan_splits([*actors, *pairs_of(4)], None, 0)
    assert set(actors) <= set(plan.videos["test"])
    assert all(plan.videos.values())


def test_a_leak_in_the_files_is_named(tmp_path: Path) -> None:
    folder = write_splits(tmp_path, train=[["000", "001"]], test=[["001", "002"]])
    with pytest.raises(InputError, match=r"identities in two splits: 001 \(train and test\)"):
        plan_splits(pairs_of(1), folder, 0)


def test_a_leaking_video_is_named(tmp_path: Path) -> None:
    folder = write_splits(tmp_path, train=[["000", "002"]], val=[["001", "003"]])
    with pytest.raises(InputError, match=r"000_001: .* 000 \(train\) and 001 \(val\) are in two splits"):
        plan_splits(pairs_of(2), folder, 0)


@pytest.mark.parametrize("content", ["[", "{}", '["000", "001"]', "[[0, 1]]", '[["000"]]'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    folder = write_splits(tmp_path)
    (folder / "val.json").write_text(content)
    with pytest.raises(InputError, match=r"val\.json"):
        plan_splits(pairs_of(1), folder, 0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (write_splits(tmp_path) / "test.json").unlink()
    with pytest.raises(InputError, match=r"test\.json: no such file"):
        plan_splits(pairs_of(1), tmp_path, 0)
