"""What identifies a run beside its settings: recorded by MLflow, and in the card of each of its models."""

import hashlib
from typing import Any

import numpy as np

from datasets_shards.schema import ShardSet, quality_name
from fdtrain.config import Config
from fdtrain.data.run_data import RunData
from fdtrain.tracking import git_revision
from fdtrain.versions import versions_in_words


def run_facts(config: Config, data: RunData) -> dict[str, str]:
    """Digest, people, quality and source compression of the data, revision and versions of the code."""
    return {
        "data.digest": data.digest,
        "data.people": people_digest(data.shard_set),
        "data.quality_name": quality_name(config.quality),
        "data.compression": str(data.shard_set.manifest.source.get("compression", "unknown")),
        "git.revision": git_revision(),
        "versions": versions_in_words(),
    }


def people_digest(shard_set: ShardSet) -> str:
    """Hash who is in which split: equal for sets whose models may be judged on each other's validation. SHA-256."""
    index, digest = shard_set.index, hashlib.sha256()
    split_of, splits = index.codes("split")
    for column in ("target", "source"):
        code_of, names = index.codes(column)
        pairs = np.unique(split_of.astype(np.int64) * len(names) + code_of)
        people = sorted(f"{splits[pair // len(names)]} {names[pair % len(names)]}" for pair in pairs.tolist())
        digest.update("\n".join([column, *people, ""]).encode())
    return digest.hexdigest()


def training_facts(config: Config, data: RunData, facts: dict[str, str]) -> dict[str, Any]:
    """What a model's card says of its training: `facts`, the qualities that it saw, how its crops were made."""
    manifest = data.shard_set.manifest
    made = {"crop": manifest.crop, "encoder": manifest.encoder}
    return {"quality": config.quality, "qualities": list(config.data.training_qualities)} | made | facts
