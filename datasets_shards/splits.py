"""Which video goes to training, validation or test, so that no identity is in two of them."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datasets_shards.errors import InputError, first_few
from datasets_shards.schema import REAL, SPLITS, file_sha256
from datasets_shards.sources import Video, is_actor_method

SHARES = {"train": 0.72, "val": 0.14, "test": 0.14}
"""FF++'s own proportions: 720, 140 and 140 of its thousand videos."""


@dataclass(frozen=True)
class SplitPlan:
    """The split of every video.

    Args:
        videos: the videos of each split, in the order in which they came.
        origin: where the splits came from, for the manifest.
        skipped: videos of which no split file knows an identity.
    """

    videos: dict[str, list[Video]]
    origin: dict[str, Any]
    skipped: list[Video]


def plan_splits(
    videos: list[Video], folder: Path | None, seed: int, given: dict[tuple[str, str], str] | None = None
) -> SplitPlan:
    """Take the splits from FF++'s files in `folder`, else those that the source itself gives, or draw them.

    actors and DeepFakeDetection have no official split and share their people, so they go to test alone.

    Args:
        videos: what to split.
        folder: with train.json, val.json and test.json, or None.
        seed: of a drawn split.
        given: the split by (method, video name) as the source has it, or None.

    Raises:
        InputError: a split file is missing or isn't a list of [target, source] pairs, or an identity is in two splits.
    """
    actors = [video for video in videos if is_actor_method(video.method)]
    others = [video for video in videos if not is_actor_method(video.method)]
    if folder is None and given is not None:
        split_of = {video: given[video.method, video.name] for video in others}
        origin: dict[str, Any] = {"origin": "source"}
    else:
        if folder is None:
            assignment = draw_identities(others, seed)
            origin = {"origin": "drawn", "seed": seed, "shares": dict(SHARES)}
        else:
            assignment = read_identities(folder)
            files = {f"{split}.json": file_sha256(folder / f"{split}.json") for split in SPLITS}
            origin = {"origin": "files", "files": files}
        split_of = {video: split for video in others if (split := _split_of(video, assignment)) is not None}
    split_of |= dict.fromkeys(actors, "test")
    placed = {split: [video for video in videos if split_of.get(video) == split] for split in SPLITS}
    refuse_leaks(placed)
    return SplitPlan(placed, origin, [video for video in videos if video not in split_of])


def _split_of(video: Video, assignment: dict[str, str]) -> str | None:
    """None where one of the video's people is in no split file."""
    splits = [assignment.get(name) for name in video.identities]
    if None in splits:
        return None
    if len(set(splits)) > 1:
        people = " and ".join(f"{name} ({split})" for name, split in zip(video.identities, splits, strict=True))
        raise InputError(f"{video.relative}: its identities {people} are in two splits; such a video leaks")
    return splits[0]


def read_identities(folder: Path) -> dict[str, str]:
    """Read FF++'s train.json, val.json and test.json, lists of [target, source] pairs: identity -> split.

    Raises:
        InputError: a file is missing or has another form, or an identity is in two of them.
    """
    assignment: dict[str, str] = {}
    leaks: list[str] = []
    for split in SPLITS:
        for name in _read_pairs(folder / f"{split}.json"):
            if assignment.setdefault(name, split) != split:
                leaks.append(f"{name} ({assignment[name]} and {split})")
    if leaks:
        raise InputError(f"--splits {folder}: identities in two splits: {first_few(sorted(set(leaks)), 20)}")
    return assignment


def _read_pairs(path: Path) -> Iterable[str]:
    try:
        pairs = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; --splits needs {', '.join(f'{split}.json' for split in SPLITS)}"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs
    ):
        raise InputError(f'{path}: not a list of [target, source] pairs such as ["071", "054"]')
    return (name for pair in pairs for name in pair)


def draw_identities(videos: list[Video], seed: int) -> dict[str, str]:
    """Draw an identity-disjoint split, 72/14/14 by number of videos: identity -> split.

    People who meet in a video are joined; each connected component goes whole to one split. Components are taken from
    the largest down, equals in an order drawn from `seed`, and each goes where most videos are still missing. A split
    stays empty only where there are fewer than three components: test first, then validation.
    """
    people = sorted({name for video in videos for name in video.identities})
    if not people:
        return {}
    number = {name: i for i, name in enumerate(people)}
    edges = np.array([[number[video.identities[0]], number[video.identities[-1]]] for video in videos])
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(people), len(people)))
    count, component = connected_components(graph, directed=False)
    sizes = np.bincount(component[edges[:, 0]], minlength=count)
    shuffled = np.random.default_rng(seed).permutation(count)
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]

    missing = {split: share * len(videos) for split, share in SHARES.items()}
    split_of: dict[int, str] = {}
    for position, index in enumerate(order):
        empty = [split for split in SPLITS if split not in split_of.values()]
        candidates = empty if count - position <= len(empty) else list(SPLITS)
        split = max(candidates, key=missing.__getitem__)
        split_of[int(index)] = split
        missing[split] -= sizes[index]
    return {name: split_of[int(component[i])] for name, i in number.items()}


def describe_people(splits: SplitPlan, seed: int) -> Iterator[str]:
    """For people: what a drawn split was drawn by, and what it can't promise.

    Where names don't say who is in a video, those that begin with the same word, or lie in one folder, may well show
    the same person.
    """
    placed = [(split, video) for split, videos in splits.videos.items() for video in videos]
    unnamed = [(split, video) for split, video in placed if not video.named]
    if not unnamed:
        yield f"splits: drawn by identity, seed {seed} (people as the names of the videos tell them)"
        return
    known = len(placed) - len(unnamed)
    yield (
        f"splits: drawn by video, seed {seed}: nothing says who is in {len(unnamed)} of {len(placed)} videos; each is "
        f"taken as a person of its own{', those of the others are told by name' if known else ''}"
    )
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for split, video in unnamed:
        folder, _, own = video.relative.partition("/")[2].rpartition("/")
        word = re.match(r"[^\W\d_]+|\d+", own)
        # A folder of fakes is most likely named after what made them.
        alike = [f"{word[0]}..."] if word else []
        for group in alike + [f"{folder}/"] * bool(folder and video.label == REAL):
            groups[group].setdefault(split, video.relative)
    if shared := {group: found for group, found in groups.items() if len(found) > 1}:
        group, found = max(shared.items(), key=lambda item: len(item[1]))
        places = " and ".join(f"{path} ({split})" for split, path in found.items())
        yield (
            f"warning: names that begin alike are in two splits ({first_few(sorted(shared))}), such as {places}; where "
            "that is one person, results on the test split are too good: give the splits with --splits DIR"
        )


def refuse_leaks(placed: dict[str, list[Video]]) -> None:
    """Raise InputError, naming the identities, where somebody is in two splits."""
    seen = Counter(name for videos in placed.values() for name in {n for video in videos for n in video.identities})
    if leaks := sorted(name for name, splits in seen.items() if splits > 1):
        raise InputError(f"identities in two splits: {first_few(leaks, 20)}")
