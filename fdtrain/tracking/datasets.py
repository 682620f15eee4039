"""The shard sets of a run as MLflow's datasets. They are described by their manifests; no tar is read."""

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from datasets_shards.schema import ShardSet, quality_name

if TYPE_CHECKING:
    from fdtrain.data.run_data import RunData

DIGEST_LENGTH = 36  # as much as MLflow takes; the whole of it is in the profile
CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}


def describe_datasets(data: "RunData") -> list[tuple[str, dict[str, str]]]:
    """What the run reads of each set: MLflow's context and the fields of its `Dataset` entity.

    MLflow knows a dataset by name and digest, and gives it one context in a run, so each split is one of its own:
    `fdtrain-q15-train`, `fdtrain-q15-val`.
    """
    weights = data.plan.settings.quality_weights
    sets = [("train", opened.shard_set, weight) for opened, weight in zip(data.training, weights, strict=True)]
    sets += [(split, data.shard_set, 1.0) for split in ("val", "test")]
    return [
        (CONTEXTS[split], _dataset(shard_set, split, len(data.rows[split]), weight))
        for split, shard_set, weight in sets
        if len(data.rows[split])
    ]


def scored_datasets(datasets: list[tuple[str, dict[str, str]]]) -> dict[str, tuple[str, str]]:
    """Split -> name and digest of the dataset that its metrics come from."""
    by_context = {context: (fields["name"], fields["digest"]) for context, fields in datasets}
    return {split: by_context[CONTEXTS[split]] for split in ("val", "test") if CONTEXTS[split] in by_context}


def _dataset(shard_set: ShardSet, split: str, samples: int, weight: float) -> dict[str, Any]:
    manifest = shard_set.manifest
    profile = {
        "digest": manifest.digest,
        "quality": manifest.quality,
        "compression": manifest.source.get("compression"),
        "split": split,
        "samples": samples,
        "weight": weight,
        "packed": manifest.counts.get(split, {}),
        "crop": manifest.crop,
        "encoder": manifest.encoder,
    }
    return {
        "name": f"fdtrain-{quality_name(manifest.quality)}-{split}",
        "digest": manifest.digest[:DIGEST_LENGTH],
        "source_type": urlsplit(shard_set.place).scheme or "local",
        "source": json.dumps({"uri": shard_set.place}),
        "profile": json.dumps(profile),
    }
