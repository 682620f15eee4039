"""Names in trees of FaceForensics++, which its own layout and DeepfakeBench's share."""

import re
from collections.abc import Sequence
from pathlib import Path

from datasets_shards.errors import InputError
from datasets_shards.schema import FAKE, FAKE_METHODS, REAL_METHODS, label_of, sample_key
from datasets_shards.sources.video import ACTOR

COMPRESSIONS = ("raw", "c0", "c23", "c40")
"""FF++'s degrees of H.264 compression; c0 is what the data set's first release called raw."""

REAL_PART, FAKE_PART = "original_sequences", "manipulated_sequences"
PARTS = {
    REAL_PART: tuple(method for method in REAL_METHODS if method != "real"),
    FAKE_PART: tuple(method for method in FAKE_METHODS if method != "fake"),
}

# 004, 01__walking_outside; 004_982, 01_02__walking_outside__YVGY8LOK
REAL_NAME = re.compile(r"(?P<target>[^_]+)(__.*)?")
FAKE_NAME = re.compile(r"(?P<target>[^_]+)_(?P<source>[^_]+)(__.*)?")

# Names of other data sets, and of FF++'s where they lie in a plain folder. A number at the end counts clips or frames.
CELEB_DF_NAME = re.compile(r"(?P<target>id\d+)(_(?P<source>id\d+))?(_\d+)?")  # id0_0000, id0_id1_0000
ACTORS_NAME = re.compile(r"(?P<target>\d\d)(_(?P<source>\d\d))?__.+")
NUMBERS_NAME = re.compile(r"(?P<target>\d{3})(_(?P<source>\d{3}))?(_\d+)?")  # 004, 004_982


def people_named(videos: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[str, str] | None]:
    """Target and source of each video whose name tells them; None for each other. A real video has no source.

    Args:
        videos: of each video the method, and the names of the folders that it lies in and its own, without suffix.
            They are looked at together: a number is FF++'s, and a person, only where a fake is named by two.
    """
    patterns = [("", CELEB_DF_NAME), (ACTOR, ACTORS_NAME)]
    if any(
        label_of(method) == FAKE and (match := NUMBERS_NAME.fullmatch(name)) and match["source"]
        for method, path in videos
        for name in path
    ):
        patterns.append(("", NUMBERS_NAME))

    def read(method: str, path: Sequence[str]) -> tuple[str, str] | None:
        for prefix, pattern in patterns:
            for name in reversed(path):
                if match := pattern.fullmatch(name):
                    has_source = match["source"] and label_of(method) == FAKE
                    return prefix + match["target"], prefix + match["source"] if has_source else ""
        return None

    return [read(method, path) for method, path in videos]


def people_of(method: str, name: str, path: Path) -> tuple[str, str]:
    """Target and source out of a video's name; the source is empty for a real video.

    Raises:
        InputError: the name, or the key of its samples, isn't one that FF++ has; names `path`.
    """
    pattern, form = (REAL_NAME, "TARGET") if method in REAL_METHODS else (FAKE_NAME, "TARGET_SOURCE")
    match = pattern.fullmatch(name)
    if match is None:
        raise InputError(f"{path}: the name of a video of {method} must be {form}{path.suffix}")
    try:
        sample_key(method, name, 0)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    people = match.groupdict()
    return people["target"], people.get("source", "")


def choose_compression(root: Path, present: list[str], chosen: str | None) -> str:
    """The one compression to read: a root of shard sets holds one.

    Raises:
        InputError: several are there and none is chosen, or the chosen one isn't there.
    """
    if chosen is None and len(present) > 1:
        raise InputError(f"--source {root}: holds the compressions {', '.join(present)}; choose with --compression")
    if chosen is not None and chosen not in present:
        raise InputError(f"--compression {chosen}: {root} has only {', '.join(present)}")
    return chosen or present[0]
