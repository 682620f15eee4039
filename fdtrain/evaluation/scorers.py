"""What gives scores: a model, or anything else with a name."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from datasets_shards.schema import quality_name
from fdtrain.data.loader import choose_loader
from fdtrain.data.reader import ShardReader
from fdtrain.evaluation.scoring import score_split
from fdtrain.metrics import known_thresholds
from fdtrain.models.registered import is_registered
from fdtrain.models.weights import open_model
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task

MIXED, UNKNOWN = "mixed", "unknown"


class Scorer(Protocol):
    """Gives P(fake) of the images of a shard set; a row of a matrix.

    Args:
        name: For people; no two scorers of a matrix share one.
        trained_on: Name of a quality, `mixed` or `unknown`.
        digest: Identity of whatever the scores follow from; scores of the same digest are not computed again.
        thresholds: Those chosen on its validation split, by level (`known_thresholds`); empty where none were.
    """

    name: str
    trained_on: str
    digest: str
    thresholds: dict[str, float]

    def score(self, reader: ShardReader, rows: np.ndarray, runtime: Runtime) -> np.ndarray:
        """P(fake) of each row, float64 `[N]`, the same on every rank. Collective.

        Args:
            reader: Of one shard set; `reader.read(row)` is the file of an image, JPEG or PNG.
            rows: int64 `[N]`, ascending.
            runtime: This rank's surroundings.
        """


class ModelScorer:
    """A model as a `Scorer`.

    Args:
        place: As `open_model`.
        batch_size: Images of one forward pass.

    Raises:
        UserError: the model can't be loaded.
    """

    def __init__(self, place: str | Path, batch_size: int) -> None:
        model, card = open_model(place)
        self.name = str(place).removeprefix("models:/") if is_registered(place) else Path(place).resolve().name
        self.trained_on = trained_on(card)
        self.digest = model_digest(card, model.state_dict())
        self.thresholds = known_thresholds((card.get("results") or {}).get("metrics") or {})
        self._task, self._batch_size = Task(model, card["input"]).eval(), batch_size

    def score(self, reader: ShardReader, rows: np.ndarray, runtime: Runtime) -> np.ndarray:
        """As `Scorer.score`."""
        kind, _ = choose_loader("auto", runtime.device)
        task = self._task.to(runtime.device)
        try:
            return score_split(
                task,
                reader,
                rows,
                runtime,
                loader=kind,
                batch_size=self._batch_size,
                threads=runtime.decode_threads,
                prefetch=3,
            )
        finally:
            self._task.cpu()  # the next model needs the room


def trained_on(card: dict[str, Any]) -> str:
    """Of a model's card: the quality that it was trained on, `mixed` where it saw several, else `unknown`."""
    facts = card.get("trained_on") or {}
    qualities = facts.get("qualities") or [facts[key] for key in ("quality",) if key in facts]
    if len(qualities) > 1:
        return MIXED
    name = str(qualities[0]) if qualities else UNKNOWN
    return quality_name(int(name)) if name.isdigit() else name


def model_digest(card: dict[str, Any], state: dict[str, Tensor]) -> str:
    """SHA-256 of a model's weights, and of how it is built and fed."""
    known = {"name": card["name"], "options": card["options"], "input": asdict(card["input"])}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
