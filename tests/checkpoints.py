"""Writing one checkpoint, for tests of reading it."""

from pathlib import Path
from typing import Any

from fdtrain.checkpoint import CheckpointWriter, Progress
from fdtrain.checkpoint.writer import WriteModel
from fdtrain.config import CheckpointConfig
from fdtrain.engines.base import EngineState
from fdtrain.runtime import Runtime


def save_checkpoint(
    root: Path,
    state: EngineState,
    progress: Progress,
    runtime: Runtime,
    *,
    write_model: WriteModel,
    config: dict[str, Any],
    data_digest: str,
    keep: int,
    keep_best: int = 0,
    value: float | None = None,
) -> None:
    """Write one checkpoint and wait for it. Collective; raises UserError where it can't be written.

    Args: as of `CheckpointWriter`, its settings and `CheckpointWriter.save`.
    """
    settings = CheckpointConfig(keep=keep, keep_best=keep_best, background=False, max_failures=1)
    writer = CheckpointWriter(root, runtime, settings, write_model=write_model, config=config, data_digest=data_digest)
    try:
        writer.save(lambda: state, progress, value)
    finally:
        writer.close()
