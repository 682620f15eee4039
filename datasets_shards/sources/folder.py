"""A plain folder: `real/` and `fake/` with images or videos of any origin, at any depth.

A video is a video file, or all images of one folder, numbered by their names' natural order. Images that lie directly
in `real/` or `fake/` are each a video of their own. A folder `fake/<method>/`, with a method's name in FF++, gives that
method; else the methods are "real" and "fake".

Who is in a video is known where its name, or that of a folder around it, is one of FF++, DeepFakeDetection or Celeb-DF
(`names.PEOPLE_NAMES`). Each other video is taken as a person of its own, except that equal paths below `real/` and
`fake/` (`real/ann`, `fake/ann`) are one person.
"""

import re
from pathlib import Path

from datasets_shards.errors import InputError, first_few
from datasets_shards.schema import FAKE_METHODS, REAL_METHODS, sample_key
from datasets_shards.sources.listing import IMAGE_SUFFIXES, Selection, Source, is_video, natural_order, walk
from datasets_shards.sources.names import people_named
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
    listed: list[tuple[str, tuple[Path, Path, tuple[str, ...], list[str]]]] = []
    skipped: list[str] = []
    entered: set[tuple[int, int]] = set()  # by both parts: what is real can't be fake
    for part, methods in PARTS.items():
        for folder, files in walk(root / part, root, skipped, entered):
            below = folder.relative_to(root / part).parts
            method, inside = (below[0], below[1:]) if below and below[0] in methods else (part, below)
            images = sorted((path.name for path in files if _is_image(path)), key=natural_order)
            if inside:
                groups = [(folder, folder, inside, images)] if images else []
            else:  # each its own video
                groups = [(folder, folder / name, (Path(name).stem,), [name]) for name in images]
            for path in files:
                if is_video(path):
                    groups.append((path, path, (*inside, path.stem), []))
                elif not _is_image(path):
                    skipped.append(f"{path.relative_to(root)}: neither an image nor a video")
            listed.extend((method, group) for group in groups)
    if not listed:
        why = f" ({first_few(skipped)})" if skipped else ""
        raise InputError(f"--source {root}: no image or video below its folders {' and '.join(PARTS)}{why}")
    people = people_named([(method, inside) for method, (_, _, inside, _) in listed])
    videos = [
        _video(root, method, *group, named, selection.cropped)
        for (method, group), named in zip(listed, people, strict=True)
        if selection.methods is None or method in selection.methods
    ]
    if selection.cropped and (file := next((video for video in videos if not video.files), None)):
        raise InputError(f"{file.path}: --crops says that the source holds face crops, and this is a video")
    return Source(LAYOUT, root, NO_COMPRESSION, videos, frozenset(method for method, _ in listed), skipped=skipped)


def _video(
    root: Path,
    method: str,
    path: Path,
    place: Path,
    inside: tuple[str, ...],
    images: list[str],
    people: tuple[str, str] | None,
    cropped: bool,
) -> Video:
    """The video at `place`: a video file, an image that stands alone in its folder `path`, or a folder of images."""
    name = key_name("/".join(inside))
    try:
        sample_key(method, name, 0)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None
    target, source = people or (name, "")
    return Video(
        method,
        name,
        target,
        source,
        compression=NO_COMPRESSION,
        path=path,
        relative=place.relative_to(root).as_posix(),
        files=tuple(enumerate(images)),
        cropped=cropped,
        named=people is not None,
    )


def key_name(path: str) -> str:
    """A path as part of a sample's key, which has room for neither dots nor slashes nor spaces: each becomes "_"."""
    return re.sub(r"[./\s]", "_", path)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES
