"""What is to be looked at: files, folders and globs as a list of files, in the order in which they were given."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets_shards.errors import InputError
from datasets_shards.sources.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES, entries, natural_order


@dataclass(frozen=True, slots=True)
class Input:
    """One file to be scored, or what was given and gives none.

    Args:
        path: As it was given, or found below what was given.
        kind: By the name's suffix; a file that was named and has no image's suffix is opened as a video. Empty where
            there is no file.
        error: Why there is no file.
    """

    path: str
    kind: Literal["image", "video", ""]
    error: str = ""


def find_inputs(words: Sequence[str]) -> tuple[list[Input], int]:
    """The files that paths, folders and globs stand for, each once, and how many others the folders hold.

    A folder stands for all images and videos in it, at any depth, but for hidden ones: in the natural order of their
    names ("2.png" before "10.png"), its own files before those of its subfolders. What gives no file is an `Input` with
    an error in its place, so that one wrong word of a thousand doesn't stop the others.
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
        files = [entry.name for entry in there if not entry.is_dir()]
        known = [name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
        for name in known:
            yield _input(os.path.join(folder, name))  # noqa: PTH118 - a path stays as it was given, "./" and all
        yield len(files) - len(known)
        folders += [os.path.join(folder, entry.name) for entry in reversed(there) if entry.is_dir()]  # noqa: PTH118
        empty = empty and not known
    if empty:
        yield Input(_printable(path), "", "holds neither images nor videos")


def _input(path: str) -> Input:
    try:
        path.encode()
    except UnicodeEncodeError:
        return Input(_printable(path), "", "its name isn't UTF-8; rename it")
    return Input(path, "image" if Path(path).suffix.lower() in IMAGE_SUFFIXES else "video")


def _printable(path: str) -> str:
    """A name that isn't UTF-8 with its bytes written out, as tables have no other way to hold it."""
    return os.fsencode(path).decode(errors="backslashreplace")
