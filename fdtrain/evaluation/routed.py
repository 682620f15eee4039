"""A registered router as a row of a matrix: each image is scored by the champion that the router would ask."""

import hashlib
import json
from typing import Any

import numpy as np

from fdtrain.data.reader import ShardReader
from fdtrain.evaluation.scorers import ModelScorer, Scorer
from fdtrain.models.registered import ROUTER_KEY, is_registered, registered_metadata
from fdtrain.runtime import Runtime

ROUTED = "routed"


def open_scorer(place: str, batch_size: int) -> Scorer:
    """The scorer of a model, or of a registered router, which is known by its metadata.

    Args:
        place: As `open_model`, or the `models:/` URI of a router.
        batch_size: Images of one forward pass.

    Raises:
        UserError: there is no such model, or it can't be loaded.
    """
    if is_registered(place) and (content := registered_metadata(place).get(ROUTER_KEY)):
        return RouterScorer(place, content, batch_size)
    return ModelScorer(place, batch_size)


class RouterScorer:
    """As `Scorer`. Its models are opened from their own versions, on the run's device; no code of the registry runs.

    Args:
        place: `models:/` URI of the router.
        content: Of its `router.json`.
        batch_size: As of `ModelScorer`.

    Raises:
        UserError: one of its models can't be loaded.
    """

    def __init__(self, place: str, content: dict[str, Any], batch_size: int) -> None:
        self.name, self.trained_on = place.removeprefix("models:/"), ROUTED
        self.thresholds: dict[str, float] = {}
        self._content = content
        self._models = {name: ModelScorer(model["uri"], batch_size) for name, model in content["models"].items()}
        known = json.dumps([content, {name: model.digest for name, model in self._models.items()}], sort_keys=True)
        self.digest = hashlib.sha256(known.encode()).hexdigest()

    def score(self, reader: ShardReader, rows: np.ndarray, runtime: Runtime) -> np.ndarray:
        """As `Scorer.score`, calibrated."""
        from fdtrain.registry.serving import calibrated  # imports mlflow

        chosen = self._route(reader, rows, runtime)
        scores = np.empty(len(rows))
        for name in np.unique(chosen):
            places = chosen == name
            raw = self._models[name].score(reader, rows[places], runtime)
            scores[places] = calibrated(self._content, name, raw)
        return scores

    def _route(self, reader: ShardReader, rows: np.ndarray, runtime: Runtime) -> np.ndarray:
        """Name of the model for each row, by its file's quantization tables; each rank looks at its share."""
        from fdtrain.registry.serving import choose_model, estimate_quality

        share = slice(runtime.rank, None, runtime.world_size)
        mine = [choose_model(self._content, estimate_quality(reader.read(row))) for row in rows[share].tolist()]
        chosen = np.empty(len(rows), object)
        for rank, names in enumerate(runtime.of_all_ranks(mine)):
            chosen[rank :: runtime.world_size] = names
        return chosen.astype(str)
