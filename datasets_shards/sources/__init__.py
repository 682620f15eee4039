"""What lies on disk: FaceForensics++'s own tree of videos.

The layout is the one that FF++'s download script writes:

    <source>/original_sequences/{youtube,actors}/<compression>/videos/004.mp4
    <source>/manipulated_sequences/<method>/<compression>/videos/004_982.mp4
"""

import re
from dataclasses import dataclass
from pathlib import Path

from datasets_shards.errors import InputError, first_few
from datasets_shards.schema import FAKE_METHODS, METHODS, REAL_METHODS, label_of, sample_key

COMPRESSIONS = ("raw", "c23", "c40")
PARTS = {"original_sequences": REAL_METHODS, "manipulated_sequences": FAKE_METHODS}

# 004, 01__walking_outside; 004_982, 01_02__walking_outside__YVGY8LOK
REAL_NAME = re.compile(r"(?P<target>[^_]+)(__.*)?")
FAKE_NAME = re.compile(r"(?P<target>[^_]+)_(?P<source>[^_]+)(__.*)?")


@dataclass(frozen=True)
class Video:
    """One video of the source.

    Args:
        method: FF++'s directory name, such as "youtube" or "Deepfakes".
        name: file name without its suffix, such as "004" or "004_982".
        target: identity whose video it is (whose face was replaced, in a fake).
        source: identity that drove the manipulation; empty for a real video.
        compression: raw, c23 or c40.
        path: where the file is.
        relative: path from the root of the source, with "/", as tables and digests record it.
    """

    method: str
    name: str
    target: str
    source: str
    compression: str
    path: Path
    relative: str

    @property
    def label(self) -> int:
        """0 real, 1 fake."""
        return label_of(self.method)

    @property
    def identities(self) -> tuple[str, ...]:
        """Everybody whose face or movement is in the video; actors never are people of the YouTube videos."""
        people = (self.target, self.source) if self.source else (self.target,)
        return tuple(f"actor {name}" for name in people) if is_actor_method(self.method) else people


def is_actor_method(method: str) -> bool:
    """Whether the method belongs to the DeepFakeDetection data set: paid actors, no official split."""
    return method in ("actors", "DeepFakeDetection")


def find_videos(source: Path, compression: str | None = None) -> list[Video]:
    """List the videos of an FF++ tree, ordered by method (as in `METHODS`) and name.

    Args:
        source: root of the tree.
        compression: which of raw, c23 and c40 to take; needed only where the tree has several.

    Raises:
        InputError: no such folder, no video in it, several compressions and none chosen, one chosen that isn't there, a
            method or a file name that FF++ doesn't have.
    """
    if not source.is_dir():
        raise InputError(f"--source {source}: no such folder; give the root of an FF++ tree of videos")
    folders = _video_folders(source)
    present = [name for name in COMPRESSIONS if any(entry[1] == name for entry in folders)]
    if not present:
        raise InputError(
            f"--source {source}: no FF++ videos; expected files such as "
            f"{source}/original_sequences/youtube/<{'|'.join(COMPRESSIONS)}>/videos/000.mp4"
        )
    if compression is None and len(present) > 1:
        raise InputError(f"--source {source}: holds the compressions {', '.join(present)}; choose with --compression")
    if compression is not None and compression not in present:
        raise InputError(f"--compression {compression}: {source} has only {', '.join(present)}")
    chosen = compression or present[0]
    return [
        _video(source, method, chosen, path)
        for method, name, paths in sorted(folders, key=lambda entry: METHODS.index(entry[0]))
        if name == chosen
        for path in paths
    ]


def _video_folders(source: Path) -> list[tuple[str, str, list[Path]]]:
    """Every (method, compression, sorted videos) under `source` that holds a video."""
    found = []
    for part, methods in PARTS.items():
        for folder in sorted((source / part).glob("*/*/videos")):
            method, compression = folder.parts[-3:-1]
            paths = sorted(path for path in folder.glob("*.mp4") if not path.name.startswith("."))
            if compression not in COMPRESSIONS or not paths:
                continue
            if method not in methods:
                raise InputError(
                    f"{folder}: {method!r} is no method of {part} in FF++, which has {', '.join(methods)}; "
                    "rename the folder or move it away"
                )
            found.append((method, compression, paths))
    return found


def _video(root: Path, method: str, compression: str, path: Path) -> Video:
    name = path.stem
    pattern, form = (REAL_NAME, "TARGET") if method in REAL_METHODS else (FAKE_NAME, "TARGET_SOURCE")
    match = pattern.fullmatch(name)
    if match is None:
        raise InputError(f"{path}: the name of a video of {method} must be {form}.mp4")
    try:
        sample_key(method, name, 0)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    people = match.groupdict()
    return Video(
        method, name, people["target"], people.get("source", ""), compression, path, path.relative_to(root).as_posix()
    )


def count_by_method(videos: list[Video]) -> str:
    """For people: "2 youtube, 1 FaceSwap"."""
    counts = {method: sum(video.method == method for video in videos) for method in METHODS}
    return first_few((f"{count} {method}" for method, count in counts.items() if count), limit=len(METHODS))
