"""Names in trees of FaceForensics++, which its own layout and DeepfakeBench's share."""

import re
from pathlib import Path

from datasets_shards.errors import InputError
from datasets_shards.schema import FAKE_METHODS, REAL_METHODS, sample_key

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
