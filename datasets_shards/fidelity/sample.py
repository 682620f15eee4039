"""Which uncompressed crops a report looks at: a few, spread evenly over methods and videos, drawn by a seed."""

import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.errors import InputError, first_few
from datasets_shards.schema import MANIFEST_NAME, METHODS, RAW, Manifest, ShardSet, open_shard_set
from datasets_shards.sources import Selection

Progress = Callable[..., Iterable[Any]]
EVERYTHING = Selection()


@dataclass(frozen=True)
class Crop:
    """An uncompressed crop.

    Args:
        key: its sample key.
        method: FF++'s directory name.
        pixels: RGB uint8 [H, W, 3].
    """

    key: str
    method: str
    pixels: np.ndarray


@dataclass(frozen=True)
class CropSample:
    """The crops of a report and where they come from.

    Args:
        crops: in the order of the source.
        origin: for people: what the source is, and its digest.
    """

    crops: list[Crop]
    origin: dict[str, str]


def sample_crops(
    source: Path,
    count: int,
    seed: int,
    workers: int = 1,
    *,
    selection: Selection = EVERYTHING,
    faces: Path | None = None,
    size: int | None = None,
    margin: float | None = None,
    progress: Progress = lambda iterable, **_: iterable,
    tell: Callable[[str], None] = lambda line: None,
) -> CropSample:
    """Draw `count` crops, or all where there are fewer.

    Args:
        source: what `pack` takes; or the `raw` set of a root that pack wrote, or such a root.
        count: number of crops.
        seed: draws videos and frames.
        workers: number of processes; the sample doesn't depend on it.
        selection: which videos of the source.
        faces: table of the faces in the source; without it the face stage runs on the videos that are drawn.
        size: side of the crops that are cut, pixels (default: that of pack).
        margin: their side over that of the tight face (default: that of pack).
        progress: called with an iterator, `total` and `desc`; wraps it, such as with a bar.
        tell: takes a line about each video that can't be used.

    Raises:
        InputError: the source holds neither videos nor a raw set, or no usable face; a setting of videos given for a
            packed set.
        ShardSetError: a damaged set.
    """
    if is_packed(source):
        given = {"--faces": faces, "--size": size, "--margin": margin}
        flags = [flag for flag, value in given.items() if value is not None]
        flags += ["flags that select videos"] * (selection != EVERYTHING)
        if flags:
            raise InputError(f"{first_few(flags)}: {source} holds crops that are cut already; leave that away")
        return _from_packed(open_raw(source), count, seed)
    # The face stage and its models are loaded for videos alone.
    from datasets_shards.fidelity.videos import sample_videos

    return sample_videos(source, count, seed, workers, selection, faces, size, margin, progress, tell)


def is_packed(source: Path) -> bool:
    """Whether `source` is a set that pack wrote, or a root of such sets."""
    return (source / MANIFEST_NAME).is_file() or any(source.glob(f"*/{MANIFEST_NAME}"))


def open_raw(source: Path) -> ShardSet:
    """The raw set that `source` is or has. Raises InputError where it has none, and so no uncompressed crops."""
    remedy = "pack it with --qualities raw, or give --source the tree of videos"
    if (source / MANIFEST_NAME).is_file():
        if Manifest.load(source).quality != RAW:
            raise InputError(f"--source {source}: its crops went through JPEG already; {remedy}")
        return open_shard_set(source.resolve().parent, RAW)
    if not (source / RAW / MANIFEST_NAME).is_file():
        there = sorted(path.parent.name for path in source.glob(f"*/{MANIFEST_NAME}"))
        raise InputError(f"--source {source}: has the sets {first_few(there)}, but no raw one; {remedy}")
    return open_shard_set(source, RAW)


def spread(methods: Sequence[str], videos: Sequence[str], count: int, seed: int) -> list[int]:
    """Draw `count` of the entries: methods take turns, and in each of them videos do. Their numbers, ascending.

    Args:
        methods: the method of every entry.
        videos: what tells the videos of a method apart, for every entry.
        count: how many to draw; all, if there are fewer.
        seed: shuffles videos and entries.
    """
    random = np.random.default_rng(seed)
    turns: dict[str, list[tuple[int, int]]] = defaultdict(list)
    seen: dict[tuple[str, str], int] = defaultdict(int)
    for i in random.permutation(len(methods)):
        turns[methods[i]].append((seen[methods[i], videos[i]], int(i)))
        seen[methods[i], videos[i]] += 1
    # (turn within the method, method, entry): sorting by it deals the entries out
    dealt = [
        (turn, METHODS.index(method), entry)
        for method, entries in turns.items()
        for turn, (_, entry) in enumerate(sorted(entries, key=lambda item: item[0]))
    ]
    return sorted(entry for _, _, entry in sorted(dealt)[:count])


def _from_packed(opened: ShardSet, count: int, seed: int) -> CropSample:
    index = opened.index
    rows = spread(index["method"].to_pylist(), index["video"].to_pylist(), count, seed)
    if not rows:
        raise InputError(f"--source {opened.folder}: holds no sample")
    entries = index.take(rows).to_pylist()
    crops = [Crop(entry["key"], entry["method"], _read_image(opened.folder, entry)) for entry in entries]
    source = opened.manifest.source
    origin = {
        "kind": "raw shard set",
        "path": str(opened.folder),
        "manifest digest": opened.manifest.digest,
        "source digest": str(source["digest"]),
        "compression of the videos": str(source["compression"]),
        "crop": ", ".join(f"{name} {value}" for name, value in opened.manifest.crop.items()),
    }
    return CropSample(crops, origin)


def _read_image(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    path = folder / entry["shard"]
    with path.open("rb") as file:
        data = os.pread(file.fileno(), entry["size"], entry["offset"])
    return decode_png(data, f"{path}: {entry['key']}.png")


def decode_png(data: bytes, where: str) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a PNG file's content. Raises InputError, naming `where` it is from, for a damaged one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # a broken PNG is a SyntaxError to Pillow
        raise InputError(f"{where}: can't be decoded ({error}); pack the set again") from None
