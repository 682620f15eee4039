"""A plain folder: `real/` and `fake/` with images or videos of any origin, at any depth.

A video is a video file, or all images of one folder, numbered by their names' natural order. Images that lie directly
in `real/` or `fake/` are each a video of their own. A folder `fake/<method>/`, with a method's name in FF++, gives that
method; else the methods are "real" and "fake".

Who is in a video isn't known. Each video is taken as a person of its own, except that equal paths below `real/` and
`fake/` (`real/ann`, `fake/ann`) are one person, who then never is in two splits.
"""

import re
from pathlib import Path

from datasets_shards.errors import InputError
from datasets_shards.schema import FAKE_METHODS, REAL_METHODS, sample_key
from datasets_shards.sources.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Selection, Source, entries, natural_order
from datasets_shards.sources.video import Video

LAYOUT = "folder"
NO_COMPRESSION = "none"
PARTS = {"real": REAL_METHODS, "fake": FAKE_METHODS}


def recognizes(root: Path) -> bool:
    """Whether there is a folder `real` or `fake`."""
    return any((root / part).is_dir() for part in PARTS)


def read(root: Path, selection: Selection) -> Source:
    """List the videos; what is neither an image nor a video is counted and skipped.

    Raises:
        InputError: a compression is asked for, no image or video, an unreadable folder.
    """
    if selection.compression is not None:
        raise InputError(f"--compression {selection.compression}: {root} is a plain folder, which has none")
    videos: list[Video] = []
    skipped: list[str] = []
    for part, methods in PARTS.items():
        for folder, files in _walk(root / part):
            below = folder.relative_to(root / part).parts
            method, inside = (below[0], below[1:]) if below and below[0] in methods else (part, below)
            images = sorted((name for name in files if _suffix(name) in IMAGE_SUFFIXES), key=natural_order)
            if inside:
                groups = [(folder, folder, inside, images)] if images else []
            else:  # each its own video
                groups = [(folder, folder / name, (Path(name).stem,), [name]) for name in images]
            for name in files:
                if _suffix(name) in VIDEO_SUFFIXES:
                    groups.append((folder / name, folder / name, (*inside, Path(name).stem), []))
                elif _suffix(name) not in IMAGE_SUFFIXES:
                    skipped.append(f"{(folder / name).relative_to(root)}: neither an image nor a video")
            videos.extend(_video(root, method, *group, selection.cropped) for group in groups)
    if not videos:
        raise InputError(f"--source {root}: no image or video below its folders {' and '.join(PARTS)}")
    if selection.cropped and (file := next((video for video in videos if not video.files), None)):
        raise InputError(f"{file.path}: --crops says that the source holds face crops, and this is a video")
    return Source(LAYOUT, root, NO_COMPRESSION, videos, skipped=skipped)


def _video(
    root: Path, method: str, path: Path, place: Path, inside: tuple[str, ...], images: list[str], cropped: bool
) -> Video:
    """The video at `place`: a video file, an image that stands alone in its folder `path`, or a folder of images."""
    name = key_name("/".join(inside))
    try:
        sample_key(method, name, 0)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None
    return Video(
        method,
        name,
        target=name,
        source="",
        compression=NO_COMPRESSION,
        path=path,
        relative=place.relative_to(root).as_posix(),
        files=tuple(enumerate(images)),
        cropped=cropped,
    )


def key_name(path: str) -> str:
    """A path as part of a sample's key, which has room for neither dots nor slashes nor spaces: each becomes "_"."""
    return re.sub(r"[./\s]", "_", path)


def _walk(folder: Path) -> list[tuple[Path, list[str]]]:
    """Every folder from `folder` down, with the names of the files in it."""
    there = entries(folder)
    here = [(folder, [entry.name for entry in there if entry.is_file()])]
    return here + [deeper for entry in there if entry.is_dir() for deeper in _walk(Path(entry.path))]


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()
