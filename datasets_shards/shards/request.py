"""What is to be packed, and whether it agrees with what a root holds."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets_shards.crops.align import CropSettings
from datasets_shards.errors import InputError
from datasets_shards.faces.table import FaceTable
from datasets_shards.jpeg.mozjpeg import describe_encoder
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import (
    MANIFEST_NAME,
    Manifest,
    Quality,
    TarEntry,
    file_sha256,
    open_shard_set,
    parse_quality,
    quality_name,
)
from datasets_shards.shards.layout import Layout
from datasets_shards.splits import SplitPlan


@dataclass(frozen=True)
class PackRequest:
    """Everything that the bytes of a root's sets follow from.

    Args:
        faces: the faces of the source.
        splits: the split of every video.
        layout: shards and samples.
        crop: how the images are made.
        jpeg: how they are compressed.
        masks: whether manipulation masks go along.
    """

    faces: FaceTable
    splits: SplitPlan
    layout: Layout
    crop: CropSettings
    jpeg: JpegSettings
    masks: bool = False

    def manifest(self, quality: Quality, tars: dict[str, TarEntry], index_sha256: str) -> Manifest:
        """The manifest of the set of one quality."""
        settings = self.faces.settings
        return Manifest(
            quality=quality,
            encoder=describe_encoder(quality, self.jpeg),
            crop=self.crop.describe() | settings.describe() | self.faces.detector | {"masks": self.masks},
            source={
                "compression": self.layout.compression,
                "videos": self.faces.num_videos,
                "sampled_frames": self.faces.status_counts(),
                "digest": self.faces.source_digest(),
            },
            splits=self.splits.origin | {"skipped_videos": len(self.splits.skipped)},
            counts=self.layout.counts,
            tars=tars,
            index_sha256=index_sha256,
        )

    def plan(self, quality: Quality) -> dict[str, Any]:
        """What an unfinished set is known by: all of the manifest that is known beforehand, and the samples."""
        return {
            "manifest": asdict(self.manifest(quality, {}, "")),
            "faces": file_sha256(self.faces.path),
            "samples": _digest(self.layout.samples["key"].to_pylist()),
            "shards": self.layout.samples_by_shard,
        }


def _digest(words: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for word in words:
        digest.update(f"{word}\n".encode())
    return digest.hexdigest()


def find_missing(root: Path, request: PackRequest, qualities: Iterable[Quality]) -> list[Quality]:
    """Those of `qualities` that the root doesn't have yet, or not finished.

    Raises:
        InputError: a set of that quality exists and was made otherwise, or the root's other sets hold other samples.
        ShardSetError: an existing set is damaged.
    """
    wanted = list(dict.fromkeys(qualities))
    present = [parse_quality(path.parent.name) for path in sorted(root.glob(f"*/{MANIFEST_NAME}"))]
    samples = request.layout.samples
    for quality in present:
        existing = open_shard_set(root, quality)
        if not existing.index["key"].equals(samples["key"]):
            raise InputError(
                f"--out {root}: its set {quality_name(quality)} holds other samples than this request "
                f"({existing.index.num_rows} against {samples.num_rows}); all sets of a root hold "
                "the same: pack into another folder"
            )
        # Beside the encoder everything must agree, or sets of one root would differ in more than their quality.
        names = ["crop", "source", "splits", "counts"] + ["encoder"] * (quality in wanted)
        planned = request.manifest(quality, {}, "")
        if differing := [name for name in names if getattr(planned, name) != getattr(existing.manifest, name)]:
            details = "; ".join(_difference(existing.manifest, planned, name) for name in differing)
            raise InputError(
                f"--out {root}: its set {quality_name(quality)} was made otherwise: {details}; pack into another folder"
            )
        shards = {name: tar.samples for name, tar in existing.manifest.tars.items()}
        if quality in wanted and shards != request.layout.samples_by_shard:
            raise InputError(
                f"--out {root}: its set {quality_name(quality)} was cut into other shards; pack into another folder, "
                "or with the --shard-samples of before"
            )
    return [quality for quality in wanted if quality not in present]


def _difference(there: Manifest, here: Manifest, name: str) -> str:
    old, new = getattr(there, name), getattr(here, name)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{name} {key} {old.get(key)} there, {new.get(key)} here" for key in keys)
