"""What is to be packed, and whether it agrees with what a root holds."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets_shards.crops.align import AS_THEY_ARE, CropSettings
from datasets_shards.errors import InputError
from datasets_shards.faces.table import FaceTable
from datasets_shards.frames.masks import mask_times
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
        masks: number and digest of the manipulation masks that go along, or None.
        made_up: whether the source is a demo's, which the manifest says then.
    """

    faces: FaceTable
    splits: SplitPlan
    layout: Layout
    crop: CropSettings
    jpeg: JpegSettings
    masks: dict[str, Any] | None = None
    made_up: bool = False

    def manifest(self, quality: Quality, tars: dict[str, TarEntry], index_sha256: str) -> Manifest:
        """The manifest of the set of one quality."""
        return Manifest(
            quality=quality,
            encoder=describe_encoder(quality, self.jpeg),
            crop=self.crop.describe() | self._describe_faces() | {"masks": self.masks},
            source={
                "compression": self.layout.compression,
                "videos": self.faces.num_videos,
                "sampled_frames": self.faces.status_counts(),
                "digest": self.faces.source_digest(),
                **({"made_up": True} if self.made_up else {}),
            },
            splits=self.splits.origin | {"skipped_videos": len(self.splits.skipped)},
            counts=self.layout.counts,
            tars=tars,
            index_sha256=index_sha256,
        )

    def _describe_faces(self) -> dict[str, Any]:
        settings = self.faces.settings
        if self.crop.align == AS_THEY_ARE:  # nobody looked for a face
            return {"frames_per_video": settings.frames_per_video, "frames": settings.choice.describe()}
        return settings.describe() | self.faces.detector

    def plan(self, quality: Quality) -> dict[str, Any]:
        """What an unfinished set is known by: all of the manifest that is known beforehand, and the samples."""
        return {"manifest": asdict(self.manifest(quality, {}, ""))} | self._samples_plan

    @cached_property
    def _samples_plan(self) -> dict[str, Any]:
        """What is the same for every quality."""
        digest = hashlib.sha256()
        for batch in self.layout.samples.select(["key"]).to_batches(max_chunksize=1 << 16):
            digest.update("\n".join(batch["key"].to_pylist()).encode() + b"\n")
        return {
            "faces": file_sha256(self.faces.path),
            "samples": digest.hexdigest(),
            "shards": self.layout.samples_by_shard,
        } | ({"mask_times": mask_times(self.layout.videos)} if self.masks else {})


def find_missing(root: Path, request: PackRequest, qualities: Iterable[Quality]) -> list[Quality]:
    """Those of `qualities` that the root doesn't have yet, or not finished.

    Raises:
        InputError: a set of that quality exists and was made otherwise, the root's other sets hold other samples, or
            one of them lacks a file.
        ShardSetError: an existing set is damaged.
    """
    wanted = list(dict.fromkeys(qualities))
    present = [quality for path in sorted(root.glob(f"*/{MANIFEST_NAME}")) if (quality := _quality_of(path.parent))]
    samples = request.layout.samples
    for quality in present:
        existing = open_shard_set(root, quality)
        for name in existing.manifest.tars:
            if not (index := (existing.folder / name).with_suffix(".idx")).is_file():
                raise InputError(f"{index}: missing; delete {existing.folder} and pack it again")
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


def _quality_of(folder: Path) -> Quality | None:
    """The quality that a set's folder is named after; a copy under another name is nobody's business here."""
    try:
        quality = parse_quality(folder.name)
    except ValueError:
        return None
    return quality if quality_name(quality) == folder.name else None


def _difference(there: Manifest, here: Manifest, name: str) -> str:
    old, new = getattr(there, name), getattr(here, name)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{name} {key} {old.get(key)} there, {new.get(key)} here" for key in keys)
