"""What lies on disk, behind one interface: `open_source` looks and lists the videos, whatever the layout.

Three layouts are known, each in a module with `recognizes(root)` and `read(root, selection)`:

- `ffpp`: FaceForensics++'s own tree of video files;
- `benchmark`: the tree of face crops that DeepfakeBench prepares, with its JSON file;
- `folder`: `real/` and `fake/` with images or videos of any origin.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from datasets_shards.errors import InputError, first_few
from datasets_shards.schema import METHODS, sample_key
from datasets_shards.sources import benchmark, ffpp, folder
from datasets_shards.sources.listing import LOST_LINK, Selection, Source
from datasets_shards.sources.names import COMPRESSIONS
from datasets_shards.sources.video import Video, is_actor_method

__all__ = [
    "COMPRESSIONS",
    "LAYOUTS",
    "Selection",
    "Source",
    "Video",
    "count_by_method",
    "describe_skipped",
    "find_videos",
    "is_actor_method",
    "open_source",
]

LAYOUTS: dict[str, ModuleType] = {"videos": ffpp, "frames": benchmark, "folder": folder}
EVERYTHING = Selection()


def open_source(root: Path, selection: Selection = EVERYTHING) -> Source:
    """List the videos under `root`, ordered by method (as in `METHODS`) and name.

    Args:
        root: folder in one of the three layouts.
        selection: which compression, methods and videos to take.

    Raises:
        InputError: no such folder, none of the layouts, nothing selected, a selected thing that isn't there, two videos
            whose samples would have the same names, a folder that can't be read.
    """
    if not root.is_dir():
        raise InputError(f"--source {root}: no such folder; give the root of a tree of videos or images")
    layout = _layout(root, selection)
    if selection.cropped and layout is not folder:
        raise InputError(f"--crops: {root} is no plain folder of images, and says itself what its frames are")
    if selection.json is not None and layout is not benchmark:
        raise InputError(f"--json {selection.json}: {root} holds no DeepfakeBench frames that it could be about")
    source = layout.read(root, selection)
    _refuse_duplicates(source.videos)
    videos = _select(source, selection)
    return replace(source, videos=sorted(videos, key=lambda video: (METHODS.index(video.method), video.name)))


def _layout(root: Path, selection: Selection) -> ModuleType:
    if selection.layout is not None:
        if not LAYOUTS[selection.layout].recognizes(root):
            raise InputError(f"--layout {selection.layout}: {root} isn't laid out so")
        return LAYOUTS[selection.layout]
    there = [module for module in LAYOUTS.values() if module.recognizes(root)]
    if not there:
        raise InputError(
            f"--source {root}: no FF++ videos (such as {ffpp.EXAMPLE}), no DeepfakeBench frames ({benchmark.EXAMPLE}), "
            "and no folders real/ and fake/ in it"
        )
    if there[:2] == [ffpp, benchmark]:  # the benchmark leaves the videos where they were
        raise InputError(
            f"--source {root}: holds videos and DeepfakeBench's frames of them; choose with --layout videos, or "
            "--layout frames"
        )
    return there[0]


def find_videos(root: Path, compression: str | None = None) -> list[Video]:
    """All videos under `root`, as `open_source` lists them."""
    return open_source(root, Selection(compression)).videos


def _refuse_duplicates(videos: list[Video]) -> None:
    paths: dict[str, str] = {}
    for video in videos:
        key = sample_key(video.method, video.name, 0)
        if (other := paths.setdefault(key, video.relative)) != video.relative:
            raise InputError(
                f"{other} and {video.relative}: two videos of {video.method} by the name {video.name!r}; rename one"
            )


def _select(source: Source, selection: Selection) -> list[Video]:
    videos = source.videos
    if selection.methods is not None:
        if unknown := [method for method in selection.methods if method not in source.methods]:
            has = ", ".join(method for method in METHODS if method in source.methods)
            raise InputError(f"--methods {first_few(unknown)}: {source.root} has only {has}")
        videos = [video for video in videos if video.method in selection.methods]
    if selection.names is not None:
        known = {video.name for video in videos} | {f"{video.method}/{video.name}" for video in videos}
        if unknown := sorted(selection.names - known):
            raise InputError(f"{selection.names_from}: {source.root} has no such videos: {first_few(unknown)}")
        videos = [video for video in videos if selection.names & {video.name, f"{video.method}/{video.name}"}]
    if not videos:
        raise InputError(f"--source {source.root}: no video is selected")
    return videos


def describe_skipped(source: Source) -> Iterator[str]:
    """For people: a line about each thing that was left out, and how many of them are links that lead nowhere."""
    for line in source.skipped:
        yield f"skipped {line}"
    if lost := sum(f": {LOST_LINK}" in line for line in source.skipped):
        yield (
            f"skipped: {lost} links lead nowhere, and {len(source.videos)} videos are left (git-annex and DataLad "
            "fetch their targets by 'get')"
        )


def count_by_method(videos: list[Video]) -> str:
    """For people: "2 youtube, 1 FaceSwap"."""
    counts = Counter(video.method for video in videos)
    return ", ".join(f"{counts[method]} {method}" for method in METHODS if counts[method])
