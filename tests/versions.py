"""Versions in a registry, without a training."""

from pathlib import Path

from fdtrain.registry import CHAMPION, Registered, Verdict, conclude_version, register
from fdtrain.tracking import connect


def add_version(
    folder: Path,
    name: str,
    uri: str,
    run_id: str,
    *,
    step: int = 0,
    is_champion: bool = True,
    tags: dict[str, str] | None = None,
    text: str = "# A card",
) -> Registered:
    """Register a model folder and say what became of it."""
    version = register(folder, name, uri=uri, run_id=run_id, step=step, tags=tags or {})
    if is_champion:
        connect(uri).set_registered_model_alias(name, CHAMPION, version)
    return conclude_version(name, version, Verdict(is_champion, "the first version"), text, uri=uri)
