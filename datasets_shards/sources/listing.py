"""What a layout gives back, and reading folders without missing one that can't be read."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets_shards.errors import InputError
from datasets_shards.sources.video import Video

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".avif"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v"})
LOST_LINK = "a link that leads nowhere:"


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
        videos: what it holds; of methods that aren't selected it may lack some.
        methods: all that it has, selected or not.
        splits: split by (method, video name), where the source says it.
        skipped: one line about each thing that was left out: its path and why.
    """

    layout: str
    root: Path
    compression: str
    videos: list[Video]
    methods: frozenset[str] = frozenset()
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


@dataclass(frozen=True)
class Folder:
    """What is in a folder, by name, with links followed.

    Args:
        files: the files.
        folders: the folders.
        skipped: one line about each thing that is neither: its path and why.
    """

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def look_into(folder: Path, root: Path) -> Folder:
    """Sort what is in a folder; a link without a target, a pipe or a device is named, never opened or passed over.

    Raises:
        InputError: as `entries`.
    """
    found = Folder()
    for entry in entries(folder):
        path = Path(entry.path)
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            why = f"can't be looked at ({error.strerror})"
            if entry.is_symlink():
                why = f"{LOST_LINK} {path.readlink()} ({error.strerror}); fetch or copy its target"
            found.skipped.append(f"{path.relative_to(root)}: {why}")
            continue
        if stat.S_ISREG(mode):
            found.files.append(path)
        elif stat.S_ISDIR(mode):
            found.folders.append(path)
        else:
            found.skipped.append(f"{path.relative_to(root)}: {_kind(mode)}, not a file")
    return found


def _kind(mode: int) -> str:
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def walk(
    folder: Path, root: Path, skipped: list[str], entered: set[tuple[int, int]] | None = None
) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder from `folder` down with the files in it, each folder once, by whatever links it can be reached.

    Args:
        folder: where to begin.
        root: of the source, for the lines in `skipped`.
        skipped: takes a line about each thing that was left out.
        entered: device and inode of each folder that an earlier walk entered; those of this one are added.

    Raises:
        InputError: as `entries`.
    """
    entered = set() if entered is None else entered
    waiting, links = [folder], list[Path]()
    while waiting or links:
        here = waiting.pop() if waiting else links.pop()  # a folder under its own name rather than by a link
        try:
            status = here.stat()
        except FileNotFoundError:
            continue
        if (status.st_dev, status.st_ino) in entered:
            skipped.append(f"{here.relative_to(root)}: a link to a folder that is read already")
            continue
        entered.add((status.st_dev, status.st_ino))
        found = look_into(here, root)
        skipped += found.skipped
        yield here, found.files
        for below in reversed(found.folders):
            (links if below.is_symlink() else waiting).append(below)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name."""
    return look_into(folder, folder).folders


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key by which "frame10" comes after "frame9"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
