"""The best model of a run against the champion of its name: who wins, and what is registered.

Both are scored on the same validation samples of all methods, whatever methods the run was trained on. Where the run
held people out of its selection, as trials of a sweep do, on theirs alone: the best of many is best by luck, too.
"""

import math
import shutil
import sys
from collections.abc import Callable
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fdtrain.config import Config, first_line
from fdtrain.data.batch import Batch
from fdtrain.data.reader import ShardReader
from fdtrain.data.run_data import RunData
from fdtrain.evaluation import read_predictions, scored_table
from fdtrain.journal import Journal
from fdtrain.metrics import is_headline
from fdtrain.models.weights import open_model, read_model_card
from fdtrain.registry import (
    CHALLENGER,
    CHAMPION,
    Incumbent,
    Verdict,
    conclude_version,
    crown,
    fetch_champion,
    fetch_version,
    incomparable,
    judge,
    model_card,
    register,
    registered_name,
)
from fdtrain.runtime import Runtime
from fdtrain.tasks import Task
from fdtrain.tracking import connect, tracking_uri


class Score(Protocol):
    """Score rows of a run's data; collective over the ranks of `runtime`."""

    def __call__(self, reader: ShardReader, rows: np.ndarray, task: Task, what: str, runtime: Runtime) -> np.ndarray:
        """Return P(fake) of each row, float64 `[N]`."""


class _Noting(Task):
    """Notes what goes wrong with a batch of a foreign model, and raises nothing: the other ranks wait for this one."""

    fault = ""

    def scores(self, batch: Batch) -> Tensor:
        """See `Task`; NaN from the first fault on."""
        if not self.fault:
            try:
                return super().scores(batch)
            except RuntimeError as error:
                self.fault = first_line(error)
        return torch.full(batch.labels.shape, math.nan)


class _Unfit(Exception):
    """A model from the registry can't be scored; the message says why."""


class Contest:
    """Takes the best model of a run to the registry.

    Args:
        config: Of the run.
        data: What it reads.
        runtime: This rank's surroundings.
        journal: Of the run.
        score: Scores rows.
        best_of: Among how many runs this one was chosen by their validation.
    """

    def __init__(
        self, config: Config, data: RunData, runtime: Runtime, journal: Journal, score: Score, best_of: int = 1
    ) -> None:
        self.config, self.data, self.runtime, self.journal = config, data, runtime, journal
        self.run = journal.run
        self.best_of = best_of
        self._score = score
        self._uri = tracking_uri(config.tracking.uri)
        self._name = config.tracking.model_name or registered_name(
            config.model.name, config.quality, config.data.is_mixed
        )
        self._fetched = self.run.path / ".incumbent"
        self._own: np.ndarray | None = None

    def challenge(self, reader: ShardReader) -> Verdict | None:
        """Judge whether the best model becomes champion. Collective.

        Whatever is wrong with the champion is the reason why it stays; the run itself is done by now.

        Returns:
            None where nothing is to be registered.

        Raises:
            RuntimeError: a rank was lost.
        """
        found = self.runtime.on_main(self._find_champion)
        if not isinstance(found, Incumbent):
            return found
        try:
            its = self._scores(reader, found, self.runtime, "registration: the champion on val")
            own = self._own_scores(reader, self.runtime)
        except _Unfit as error:
            return found.stays(str(error))
        finally:
            if self.runtime.is_main:
                shutil.rmtree(self._fetched, ignore_errors=True)
        return self.runtime.on_main(lambda: judge(found, self._table(its), self._table(own)))

    def _find_champion(self) -> Incumbent | Verdict | None:
        """Find whom to meet, or the verdict without that. On rank 0."""
        tracker = self.journal.tracker
        if not (tracker and self.config.tracking.register) or (tracker.run_id is None and tracker.fault):
            return None  # a server that is down would keep everybody waiting
        try:
            found = fetch_champion(self._name, self._uri, self._fetched)
            if found and connect(self._uri).get_model_version(self._name, found.version).run_id == tracker.run_id:
                shutil.rmtree(self._fetched, ignore_errors=True)
                return Verdict(True, "its run was interrupted when it was champion already", found.version)
        except Exception as error:  # noqa: BLE001 - any fault of a server or its client; the trained model stays
            return Verdict(False, f"the registry didn't say who is champion: {first_line(error)}")
        if found is None:
            return Verdict(True, "the first version")
        if reason := self._no_contest_with(found):
            shutil.rmtree(self._fetched, ignore_errors=True)
            return found.stays(reason)
        return found

    def _no_contest_with(self, other: Incumbent) -> str:
        """Say why a comparison would mean nothing; empty where it means something."""
        if other.folder is None:
            return f"it can't be loaded: {other.fault}"
        if self.best_of > 1 and not self.data.holds_out:
            return f"this model is the best of {self.best_of} by the only validation people that there are to judge by"
        try:
            theirs = read_model_card(other.folder)
        except Exception as error:  # noqa: BLE001 - any fault of whatever somebody put into the registry
            return f"it can't be loaded: {first_line(error)}"
        own = read_model_card(self.run.best)
        if reason := incomparable(theirs.get("trained_on") or {}, own["trained_on"]):
            return f"{reason}; tracking.model_name gives models of another kind a name of their own"
        return ""

    def _scores(self, reader: ShardReader, version: Incumbent, runtime: Runtime, what: str) -> np.ndarray:
        """Score the samples of the contest with a version, float64 `[N]`. Collective over `runtime`.

        Raises:
            _Unfit: on every rank, it can't be loaded or scored.
        """
        task, fault = None, ""
        try:
            assert version.folder is not None
            model, card = open_model(version.folder)
            task = _Noting(model, card["input"]).to(runtime.device)
        except Exception as error:  # noqa: BLE001 - any fault of whatever somebody put into the registry
            fault = first_line(error).replace(f"{version.folder}/", "")
        if fault := next(filter(None, runtime.of_all_ranks(fault)), ""):
            raise _Unfit(f"it can't be loaded: {fault}")
        assert task is not None
        scores = self._score(reader, self.data.contest, task, what, runtime)
        if fault := next(filter(None, runtime.of_all_ranks(task.fault)), ""):
            raise _Unfit(f"it can't be scored: {fault}")
        if not np.isfinite(scores).all():
            raise _Unfit("its scores aren't finite")
        return scores

    def _own_scores(self, reader: ShardReader, runtime: Runtime) -> np.ndarray:
        """Score them with the run's best model. On rank 0 alone where they are validation's, which are on disk."""
        if self._own is None and not np.array_equal(self.data.contest, self.data.rows["val"]):
            model, card = open_model(self.run.best)
            task = Task(model, card["input"]).to(runtime.device)
            self._own = self._score(reader, self.data.contest, task, "registration: this model on val", runtime)
        elif self._own is None and runtime.is_main:
            self._own = read_predictions(self.run.predictions("val"))["score"].to_numpy()
        return np.empty(0) if self._own is None else self._own

    def _table(self, scores: np.ndarray) -> pa.Table:
        """Return predictions with these scores of the contest's samples, as `judge` compares them."""
        shard_set, rows = self.data.shard_set, self.data.contest
        return scored_table(shard_set, rows, scores).append_column("key", shard_set.index.take(rows, "key")["key"])

    def register(self, metrics: dict[str, float], facts: dict[str, str], verdict: Verdict | None) -> str | None:
        """Register the best model, from rank 0; its URI, or None where it isn't to be, or couldn't be, registered."""
        tracker = self.journal.tracker
        if not (tracker and self.config.tracking.register):
            return None
        self.journal.say(f"registering {self._name}: the model is exported and sent to MLflow")
        tags = facts | {key: repr(value) for key, value in metrics.items() if is_headline(key)}
        try:
            content = read_model_card(self.run.best)
            run_id = tracker.run_id
            if run_id is None or verdict is None:
                raise ConnectionError("MLflow has no record of this run")
            version = register(
                self.run.best,
                self._name,
                uri=self._uri,
                run_id=run_id,
                step=content["results"]["step"],
                tags=tags | ({"best_of": str(self.best_of)} if self.best_of > 1 else {}),
            )
            verdict = crown(connect(self._uri), self._name, version, verdict, self._duel(version))
            text = model_card(
                self._name,
                content | {"input": vars(content["input"])},
                training=[opened.shard_set.manifest for opened in self.data.training],
                scored=self.data.shard_set.manifest,
                metrics=metrics,
                facts=facts,
                run_id=run_id,
                verdict=verdict.reason,
                licence=self.config.tracking.data_licence,
                best_of=self.best_of,
            )
            done = conclude_version(self._name, version, verdict, text, uri=self._uri)
        except Exception as error:  # noqa: BLE001 - any fault of a server or of the export; the trained model stays
            reason = first_line(error)
            print(
                f"warning: {self._name} was not registered ({reason}); the model is {self.run.best}, "
                f"and 'python -m fdtrain register {self.run.path}' registers it later",
                file=sys.stderr,
            )
            return None
        role = CHAMPION if done.verdict.is_champion else CHALLENGER
        self.journal.say(f"registered {done.name} version {done.version}: {role} ({done.verdict.reason})")
        return f"models:/{done.name}/{done.version}"

    def _duel(self, own: str) -> Callable[[str, str], Verdict]:
        """Compare this run's version with one that became champion meanwhile, on this rank alone."""
        alone = self.runtime.alone()

        def duel(defender: str, attacker: str) -> Verdict:
            stays = Incumbent(defender, None).stays
            other = attacker if defender == own else defender
            met = fetch_version(self._name, other, self._uri, self._fetched)
            try:
                if reason := self._no_contest_with(met):
                    return stays(f"of version {other}: {reason}")
                with self.data.reader() as reader:
                    its = self._scores(reader, met, alone, f"registration: version {other} on val")
                    mine = self._own_scores(reader, alone)
            except _Unfit as error:
                return stays(f"of version {other}: {error}")
            finally:
                shutil.rmtree(self._fetched, ignore_errors=True)
            first, second = (mine, its) if defender == own else (its, mine)
            return judge(Incumbent(defender, None), self._table(first), self._table(second))

        return duel
