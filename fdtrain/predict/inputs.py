"""What is to be looked at: files, folders and globs as a list of files, in the order in which they were given."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datasets_shards.errors import InputError
from datasets_shards.frames.errors import FrameError
from datasets_shards.frames.image import is_image
from datasets_shards.sources.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES, entries, natural_order


@dataclass(frozen=True, slots=True)
class Input:
    """One file to be scored, or what was given and gives none.

    Args:
        path: As it was given, or found below what was given.
        kind: What its content says, see `with_kind`; empty until then, and where there is no file.
        error: Why there is no file.
    """

    path: str
    kind: Literal["image", "video", ""] = ""
    error: str = ""


def find_inputs(words: Sequence[str]) -> tuple[list[Input], int]:
    """The files that paths, folders and globs stand for, each once, and how many others the folders hold.

    A folder stands for all images and videos in it, by their names or else by their content, at any depth, but for
    hidden ones: in the natural order of their names ("2.png" before "10.png"), its own files before those of its
    subfolders. What gives no file, such as a link to nowhere or a FIFO, is an `Input` with an error in its place, so
    that one wrong word of a thousand doesn't stop the others.
    """
    found: dict[str, Input] = {}
    passed_over = 0
    for word in words:
        inputs = list(_matching(word))
        if not inputs:
            inputs = [Input(_printable(word), "", "matches no file" if glob.has_magic(word) else "no such file")]
        for item in inputs:
            if isinstance(item, int):
                passed_over += item
            else:
                found.setdefault(item.path, item)
    return list(found.values()), passed_over


def _matching(word: str) -> Iterator[Input | int]:
    if os.path.lexists(word):  # whose name may well have brackets in it
        yield from _inside(word)
    elif glob.has_magic(word):
        for path in sorted(glob.glob(word, recursive=True), key=natural_order):  # noqa: PTH207 - absolute ones too
            yield from _inside(path)


def _inside(path: str) -> Iterator[Input | int]:
    """The file, or the files of the folder and the number of others in it."""
    if not Path(path).is_dir():
        yield _input(path)
        return
    folders = [path]
    seen: set[str] = set()  # a link may lead back up
    empty = True
    while folders:
        folder = folders.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            there = sorted(entries(Path(folder)), key=lambda entry: natural_order(entry.name))
        except InputError as error:
            yield Input(_printable(folder), "", str(error).removeprefix(f"{folder}: "))
            empty = False
            continue
        paths = [os.path.join(folder, entry.name) for entry in there]  # noqa: PTH118 - as it was given, "./" and all
        deeper = [path for path in paths if os.path.isdir(path)]  # noqa: PTH112 - False for a link to itself
        files = [path for path in paths if path not in set(deeper)]
        known = [item for item in map(_known, files) if item is not None]
        yield from known
        yield len(files) - len(known)
        folders += reversed(deeper)
        empty = empty and not known
    if empty:
        yield Input(_printable(path), "", "holds neither images nor videos")


def _known(path: str) -> Input | None:
    """A file of a folder; None where it is neither an image nor a video."""
    if Path(path).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        return _input(path)
    try:
        return None if is_image(Path(path)) is None else _input(path)
    except (FrameError, OSError):  # whoever opens it says what is wrong
        return _input(path)


def _input(path: str) -> Input:
    try:
        path.encode()
    except UnicodeEncodeError:
        return Input(_printable(path), "", "its name isn't UTF-8; rename it")
    return Input(path)


def with_kind(item: Input) -> Input:
    """The same file as an image or a video: what its content says, or where that says nothing its name.

    Raises:
        FrameError: it is no file.
        OSError: it can't be read.
    """
    path = Path(item.path)
    by_content = is_image(path)
    image = path.suffix.lower() in IMAGE_SUFFIXES if by_content is None else by_content
    return replace(item, kind="image" if image else "video")


def _printable(path: str) -> str:
    """A name that isn't UTF-8 with its bytes written out, as tables have no other way to hold it."""
    return os.fsencode(path).decode(errors="backslashreplace")
