"""No identity in two splits, whatever the videos."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_shards.errors import InputError
from datasets_shards.schema import SPLITS
from datasets_shards.sources import Video, open_source
from datasets_shards.splits import SHARES, SplitPlan, describe_people, draw_identities, plan_splits

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


def plain_folder(root: Path, *names: str) -> list[Video]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return open_source(root).videos


@pytest.mark.parametrize(
    ("real", "fake"),
    [
        ("id{a}_0000.mp4", "id{a}_id{b}_0000.mp4"),  # Celeb-DF
        ("id{a}/7.mp4", "made/id{a}_id{b}/frame1.png"),
        ("{a:03d}.mp4", "{a:03d}_{b:03d}.mp4"),  # FF++
        ("{a:03d}_0012.png", "Deepfakes/{a:03d}_{b:03d}/0001.png"),
        ("{a:02d}__walking.mp4", "{a:02d}_{b:02d}__walking__YVGY8LOK.mp4"),  # DeepFakeDetection
    ],
)
def test_people_of_a_plain_folder_by_their_names(tmp_path: Path, real: str, fake: str) -> None:
    """Six pairs of people: nobody is in two splits, and each fake goes with both of its people."""
    pairs = [(2 * i, 2 * i + 1) for i in range(6)]
    ordered = [(a, b) for pair in pairs for a, b in (pair, pair[::-1])]
    names = [name for a, b in ordered for name in (f"real/{real.format(a=a)}", f"fake/{fake.format(a=a, b=b)}")]
    plan = plan_splits(plain_folder(tmp_path, *names), None, 0)
    people = people_by_split(plan)
    assert sum(map(len, people.values())) == len(set().union(*people.values())) == 12
    assert all(people.values())
    assert list(describe_people(plan, 0)) == [
        "splits: drawn by identity, seed 0 (people as the names of the videos tell them)"
    ]


def test_nothing_is_promised_of_people_that_nobody_knows(tmp_path: Path) -> None:
    names = [f"{part}/{word}.png" for part in ("real", "fake") for word in ("red", "green", "blue", "_1")]
    plan = plan_splits(plain_folder(tmp_path / "words", *names), None, 0)
    (line,) = describe_people(plan, 0)
    assert line.startswith("splits: drawn by video, seed 0: nothing says who is in 8 of 8 videos; each is taken as")
    names += [f"real/{name}" for name in ("ann_1.png", "ann_2.png", "ann-3.png", "bob/clip.mp4", "bob/film.mp4")]
    for seed in range(20):
        plan = plan_splits(plain_folder(tmp_path / "people", *names), None, seed)
        splits = {
            name: {s for s, vs in plan.videos.items() for v in vs if name in v.relative} for name in ("ann", "bob")
        }
        warned = "".join(list(describe_people(plan, seed))[1:])
        assert ("ann..." in warned) == (len(splits["ann"]) > 1)
        assert ("bob/" in warned) == (len(splits["bob"]) > 1)
        assert not warned or "(test) and" in warned or "(train) and" in warned or "(val) and" in warned


def test_numbers_are_people_only_where_fakes_are_named_by_two(tmp_path: Path) -> None:
    assert not any(
        video.named for video in plain_folder(tmp_path, "real/ann/001.mp4", "real/bob/001.mp4", "fake/9.mp4")
    )
