"""What identifies a run beside its settings: recorded by MLflow, and in the card of each of its models."""

from typing import Any

from datasets_shards.schema import quality_name
from fdtrain.config import Config
from fdtrain.data.run_data import RunData
from fdtrain.tracking import git_revision
from fdtrain.versions import versions_in_words


def run_facts(config: Config, data: RunData) -> dict[str, str]:
    """Digest, quality and source compression of the data, revision and versions of the code."""
    return {
        "data.digest": data.digest,
        "data.quality_name": quality_name(config.quality),
        "data.compression": str(data.shard_set.manifest.source.get("compression", "unknown")),
        "git.revision": git_revision(),
        "versions": versions_in_words(),
    }


def training_facts(config: Config, data: RunData, facts: dict[str, str]) -> dict[str, Any]:
    """What a model's card says of its training: `facts`, the qualities that it saw, how its crops were made."""
    manifest = data.shard_set.manifest
    made = {"crop": manifest.crop, "encoder": manifest.encoder}
    return {"quality": config.quality, "qualities": list(config.data.training_qualities)} | made | facts
