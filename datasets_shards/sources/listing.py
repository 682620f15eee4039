"""What a layout gives back, and reading folders without missing one that can't be read."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from datasets_shards.errors import InputError
from datasets_shards.sources.video import Video

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".avif"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v"})


@dataclass(frozen=True)
class Selection:
    """Which part of a source is wanted; None stands for all.

    Args:
        compression: raw, c0, c23 or c40; needed only where the source has several.
        layout: "videos", "frames" or "folder"; needed only where the source could be read in several ways.
        methods: names of methods.
        names: names of videos, "004_982" (of any method) or "FaceSwap/004_982".
        names_from: where the names were read, for messages.
        cropped: whether the images of a plain folder are face crops already.
        json: DeepfakeBench's JSON file, where it doesn't lie in its usual places.
    """

    compression: str | None = None
    layout: str | None = None
    methods: tuple[str, ...] | None = None
    names: frozenset[str] | None = None
    names_from: str = ""
    cropped: bool = False
    json: Path | None = None


@dataclass(frozen=True)
class Source:
    """The videos of a source.

    Args:
        layout: "FaceForensics++ videos", "DeepfakeBench frames" or "folder".
        root: where it lies.
        compression: of all its videos.
        videos: what it holds.
        splits: split by (method, video name), where the source says it.
        skipped: one line about each thing that was left out: its path and why.
    """

    layout: str
    root: Path
    compression: str
    videos: list[Video]
    splits: dict[tuple[str, str], str] | None = None
    skipped: list[str] = field(default_factory=list)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, without hidden entries; none where there is no such folder.

    `Path.glob` passes over a folder that it may not read, and half a data set would go missing without a word.

    Raises:
        InputError: the folder can't be read, or the name of an entry isn't UTF-8.
    """
    try:
        with os.scandir(folder) as found:
            there = [entry for entry in found if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder}: can't be read ({error.strerror}); make it readable or move it away") from None
    for entry in there:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{folder}: holds a file whose name isn't UTF-8 ({entry.name!r}); rename it") from None
    return sorted(there, key=lambda entry: entry.name)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name."""
    return [Path(entry.path) for entry in entries(folder) if entry.is_dir()]


def video_files(folder: Path) -> list[Path]:
    """The video files in a folder, by name."""
    return [
        Path(entry.path)
        for entry in entries(folder)
        if Path(entry.name).suffix.lower() in VIDEO_SUFFIXES and entry.is_file()
    ]


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key by which "frame10" comes after "frame9"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
