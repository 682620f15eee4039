"""Crops for a report out of a raw set that pack wrote."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from datasets_shards.errors import InputError, first_few
from datasets_shards.fidelity.drawing import Crop, CropSample, decode_png, spread
from datasets_shards.schema import MANIFEST_NAME, RAW, Manifest, ShardSet, open_shard_set


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


def sample_packed(opened: ShardSet, count: int, seed: int) -> CropSample:
    """Draw crops from a raw set; errors as in `sample.sample_crops`."""
    index = opened.index.read()
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
        "crop": ", ".join(f"{name} {value}" for name, value in opened.manifest.crop.items() if name != "masks"),
    }
    return CropSample(crops, origin)


def _read_image(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    path = folder / entry["shard"]
    with path.open("rb") as file:
        data = os.pread(file.fileno(), entry["size"], entry["offset"])
    try:
        return decode_png(data)
    except ValueError as error:
        raise InputError(f"{path}: {entry['key']}.png {error}; delete {folder} and pack it again") from None
