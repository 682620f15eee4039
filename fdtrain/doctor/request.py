"""What a person asks to have looked at, and where a process stands among those that look."""

import json
import os
import socket
from dataclasses import asdict, dataclass
from typing import Self, get_args, get_type_hints

from datasets_shards.schema import Quality
from fdtrain.config import EngineConfig

PARTS = ("packages", "host", "disk", "ports", "mlflow", "device", "data", "dry-run")


@dataclass(frozen=True)
class Request:
    """What is looked at.

    Args:
        root: Of the shard sets, a path or a URL; None for no data.
        quality: Of the one set; None for all that the root has.
        cache_dir: For a root by URL.
        cache_bytes: Likewise.
        run_dir: The run folder that is meant to be used, or one that holds it.
        model: Name of the model that is to be trained.
        tracking_uri: MLflow's.
        skip: Of `PARTS`.
        limit_s: Seconds that the device, the data and a dry run may take, each.
    """

    root: str | None
    quality: Quality | None
    cache_dir: str | None
    cache_bytes: int
    run_dir: str
    model: str
    tracking_uri: str
    skip: tuple[str, ...] = ()
    limit_s: float = 120.0

    def wants(self, part: str) -> bool:
        """Whether a part is to be looked at."""
        assert part in PARTS
        return part not in self.skip

    def to_json(self) -> str:
        """On one line, for a child process."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `to_json`."""
        content = json.loads(text)
        return cls(**content | {"skip": tuple(content["skip"])})


@dataclass(frozen=True)
class Place:
    """A process among those that torchrun started; a process that it didn't start is alone."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @classmethod
    def here(cls) -> Self:
        """Of this process."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        return cls(*(int(os.environ.get(name, "0" if name.endswith("RANK") else "1")) for name in names))

    @property
    def label(self) -> str:
        """For people; empty where there is one process."""
        return f"rank {self.rank} on {socket.gethostname()}" if self.world_size > 1 else ""


def engine_kinds() -> list[str]:
    """The engines that `engine.kind` may name."""
    return [kind for kind in get_args(get_type_hints(EngineConfig)["kind"]) if kind != "auto"]
