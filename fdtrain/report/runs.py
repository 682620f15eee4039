"""Runs as their folders tell them, and what can't be told with the reason."""

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_shards.schema import Quality, ShardSetError, parse_quality, quality_name
from datasets_shards.yaml12 import YAMLError, load_yaml
from fdtrain.config import UserError, flatten
from fdtrain.data.remote import OpenedSet, open_cache, open_set
from fdtrain.evaluation.predictions import read_origin
from fdtrain.evaluation.scorers import model_digest
from fdtrain.metrics import PREDICTION_SCHEMA, VIDEO_SCORE
from fdtrain.models.card import read_model_card
from fdtrain.models.weights import open_model
from fdtrain.report.content import Missing
from fdtrain.run_folder import RunFolder

COMPRESSIONS = ("raw", "c23", "c40")
EVALUATIONS = "evaluations"
"""Folder of a run for what `evaluate --model RUN --out RUN/evaluations/NAME.json` writes: its model on other data."""


@dataclass(frozen=True)
class Result:
    """Scores of a run's model on one split of one shard set.

    Args:
        metrics: As metrics.json has them; None stands for what is undefined.
        file: The predictions.
        compression: Of the source videos.
        quality: Of the shard set, by the name of its folder.
    """

    metrics: dict[str, float | None]
    file: Path
    compression: str | Missing
    quality: str

    @cached_property
    def predictions(self) -> pa.Table:
        """Columns of `PREDICTION_SCHEMA`."""
        return read_predictions(self.file)


@dataclass(frozen=True)
class Run:
    """A run folder.

    Args:
        letter: What figures and tables call it.
        path: The folder.
        name: The folder's name, signs that can't be printed replaced.
        text: Its config.yaml.
        config: The same, by flat keys.
        metrics: Its metrics.json; empty before the run ends.
        log: Lines of its log.jsonl.
        status: Its status.json.
        card: Its best model's model.json; empty before the first validation.
    """

    letter: str
    path: Path
    name: str
    text: str
    config: dict[str, Any]
    metrics: dict[str, float | None]
    log: list[dict[str, Any]]
    status: dict[str, Any]
    card: dict[str, Any]

    @property
    def label(self) -> str:
        """Letter and name."""
        return f"{self.letter} {self.name}"

    @property
    def quality(self) -> Quality:
        """Of the shard set."""
        return parse_quality(self.config["data.quality"])

    @property
    def trained_on(self) -> dict[str, Any]:
        """What the run recorded of its data and code."""
        return self.card.get("trained_on") or {}

    @property
    def best_step(self) -> int | None:
        """Of the model that counts."""
        return (self.card.get("results") or {}).get("step")

    @cached_property
    def data(self) -> OpenedSet | Missing:
        """The shard set that its validation and test splits are of."""
        root = self.config["data.root"]
        try:
            cache = open_cache(root, self.config.get("data.cache_dir"), self.config.get("data.cache_bytes", 0))
            opened = open_set(root, self.quality, cache)
        except (ShardSetError, UserError) as error:
            return Missing(f"{self.letter}: its data can't be read: {error}")
        known = self.trained_on.get("data.digest")
        if known and not self.config.get("data.mix") and known != opened.shard_set.manifest.digest:
            return Missing(
                f"{self.letter}: {opened.shard_set.place} isn't the data that it was trained on any more (its digest "
                "differs)"
            )
        return opened

    @cached_property
    def compression(self) -> str | Missing:
        """Of its source videos: as recorded, or as its data says."""
        if known := self.trained_on.get("data.compression"):
            return str(known)
        if isinstance(self.data, Missing):
            return Missing(f"{self.data.reason}; so the compression of its videos isn't known")
        return str(self.data.shard_set.manifest.source.get("compression") or "unknown")

    def result(self, split: str) -> Result | Missing:
        """What its best model makes of a split of its own data."""
        file = RunFolder(self.path).predictions(split)
        if not self.metrics:
            state = self.status.get("state", "unknown")
            why = f" ({self.status['reason']})" if self.status.get("reason") else ""
            return Missing(f"{self.letter}: the run's state is {state}{why}; metrics come when it is finished")
        if not any(name.startswith(f"{split}/") for name in self.metrics):
            return Missing(f"{self.letter}: the {split} split of its data is empty")
        if not file.exists():
            return Missing(f"{self.letter}: {file} is gone; evaluate the model again")
        return Result(self.metrics, file, self.compression, quality_name(self.quality))

    @cached_property
    def evaluations(self) -> list[Result]:
        """Its model on the test splits of other data, as `evaluate` wrote them below the run's `evaluations/`."""
        results = []
        for file in sorted((self.path / EVALUATIONS).glob("*.parquet")):
            origin = read_origin(file) or {}
            if origin.get("split") != "test":
                continue
            if origin["scores"] != self._digest:
                compression: str | Missing = Missing(
                    f"{self.letter}: {file} is of other weights than the run's best model; evaluate again"
                )
            else:
                compression = origin.get("compression") or Missing(
                    f"{self.letter}: {file} doesn't say how its videos were compressed; evaluate again"
                )
            source = file.with_suffix(".json")
            metrics, quality = _read_json(source), read_predictions(file)["quality"][0].as_py()
            if how := metrics.pop(VIDEO_SCORE, None):
                compression = Missing(
                    f"{self.letter}: {source} was evaluated with --video_score {how}, tables are of means; evaluate "
                    "again without it"
                )
            results.append(Result(metrics, file, compression, quality))
        return results

    @cached_property
    def _digest(self) -> str:
        """Of its best model, as `evaluate` writes it beside the scores."""
        model, card = open_model(self.path)
        return model_digest(card, model.state_dict())


def read_runs(places: Sequence[Path]) -> list[Run]:
    """Read run folders.

    Raises:
        UserError: one of them isn't a run, is named twice, or a file of it is damaged.
    """
    seen: set[Path] = set()
    runs = []
    for number, place in enumerate(places):
        if place.resolve() in seen:
            raise UserError(f"{place}: named twice; give each run once")
        seen.add(place.resolve())
        runs.append(_read_run(place, _letters(number)))
    return runs


def _read_run(path: Path, letter: str) -> Run:
    run = RunFolder(path)
    if not run.config.is_file():
        raise UserError(f"{path}: has no config.yaml, so it is no run; give folders that training wrote")
    text = run.config.read_text(encoding="utf-8")
    try:
        config = load_yaml(text)
        flat = flatten(config)
        parse_quality(flat["data.quality"]), flat["data.root"], flat["model.name"]
    except (YAMLError, AttributeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{run.config}: not the configuration of a run ({reason}); give another folder") from None
    name = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in path.resolve().name)
    return Run(
        letter,
        path,
        name,
        text,
        flat,
        _read_json(run.metrics) if run.metrics.exists() else {},
        _read_log(path),
        _read_json(path / "status.json") if (path / "status.json").exists() else {},
        read_model_card(run.best) if run.best.is_dir() else {},
    )


def _letters(number: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    more, last = divmod(number, 26)
    return (_letters(more - 1) if more else "") + string.ascii_uppercase[last]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: missing beside its predictions; evaluate again") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); delete it, or take another run") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no JSON object; delete it, or take another run")
    return content


def _read_log(path: Path) -> list[dict[str, Any]]:
    try:
        return RunFolder(path).records()
    except ValueError as error:
        raise UserError(f"{path / 'log.jsonl'}: damaged ({error}); delete the line") from None


def read_predictions(file: Path) -> pa.Table:
    """Predictions in `PREDICTION_SCHEMA`. Raises UserError where the file isn't such."""
    try:
        return pq.read_table(file, columns=PREDICTION_SCHEMA.names).cast(PREDICTION_SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: holds no predictions ({reason}); evaluate the model again") from None
