"""What a sweep knows: an Optuna study in a file, written by the driver alone, one line for each thing that happens.

It is all that a sweep which was killed goes on by; each line is on the disk before the next is done.
"""

import fcntl
import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fdtrain.config import UserError
from launch.sweep.plan import Plan, settings_before, settings_of

State = Literal["running", "finished", "stopped", "failed"]
FILE = "study.jsonl"


@dataclass(frozen=True)
class Epoch:
    """A validation of a trial.

    Args:
        epoch: Epochs done, from 1.
        value: Of the sweep's metric; None where that is undefined.
        seconds: Wall time of the epochs since the one reported before.
    """

    epoch: int
    value: float | None
    seconds: float


@dataclass(frozen=True)
class Trial:
    """What is known of a trial.

    Args:
        number: From 0.
        state: `running` also where the driver died meanwhile.
        settings: Key -> value of the configuration.
        epochs: Its validations, in order.
        reason: Why it failed; empty otherwise.
        drawn: The searcher's own values, by key.
        seconds: Of its place in the cluster: start, epochs, end; 0 where it never ended.
    """

    number: int
    state: State
    settings: dict[str, Any]
    epochs: tuple[Epoch, ...]
    reason: str
    drawn: dict[str, Any]
    seconds: float

    def best(self, maximize: bool) -> float | None:
        """The best value of its epochs, which is that of the model it keeps where it is the metric of selection."""
        values = [epoch.value for epoch in self.epochs if epoch.value is not None]
        return (max(values) if maximize else min(values)) if values else None


class Study:
    """The search of one quality.

    Args:
        plan: What is searched.
        resume: Whether a study that is there goes on.

    Raises:
        UserError: there is one and it isn't to go on, or it was another sweep.
    """

    def __init__(self, plan: Plan, resume: bool) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.maximize = plan, plan.sweep.maximize
        path, there = plan.folder / FILE, is_begun(plan)
        if there and not resume:
            raise UserError(
                f"storage: {plan.folder} holds a sweep already; go on with it by --resume, or give another name"
            )
        plan.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _take(plan.folder)
        if there:
            _mend(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._storage = JournalStorage(JournalFileBackend(str(path)))
        direction = "maximize" if self.maximize else "minimize"
        self.study = optuna.create_study(
            storage=self._storage, study_name=plan.group, direction=direction, load_if_exists=True
        )
        try:
            self._check_same()
        except UserError:
            self.close()
            raise
        self.distributions = plan.space.distributions()
        self.start_clock()
        self._mend_draws()

    def _check_same(self) -> None:
        new = json.loads(json.dumps(settings_of(self.plan)))
        known = self.study.user_attrs.get("settings")
        if known is None:
            self.study.set_user_attr("settings", new)
            return
        old = json.loads(json.dumps(settings_before(known)))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise UserError(
                    f"{key}: {new.get(key)} where {self.plan.folder} was searched with {old.get(key)}; a sweep that "
                    "goes on keeps it: set it back, or give another name"
                )

    def keep_data(self, digests: list[str]) -> None:
        """Note of which shard sets the trials are. Raises UserError: those before were of others."""
        before = self.study.user_attrs.get("data")
        if before is None:
            self.study.set_user_attr("data", digests)
        elif before != digests:
            raise UserError(
                f"data.root: {self.plan.base.data.root} isn't the shard set that {self.plan.folder} was searched on, "
                "so its trials can't be compared; put that one back, or give another name"
            )

    def _mend_draws(self) -> None:
        """Complete the trials whose settings a crash has kept from being written; end those that were drawn in part."""
        for frozen in self.study.get_trials(deepcopy=False):
            if frozen.state.is_finished() or "settings" in frozen.user_attrs:
                continue
            if frozen.params.keys() == self.distributions.keys():
                settings = self.plan.space.settings(frozen.params)
                self._storage.set_trial_user_attr(frozen._trial_id, "settings", settings)
            else:
                self.end(frozen.number, "failed", 0.0, "the sweep was killed while it drew its settings")

    def close(self) -> None:
        """Give the folder back."""
        os.close(self._lock)

    def ask(self) -> int:
        """Draw a new trial; gives its number."""
        # Each draw has a generator of its own, so that a sweep that was killed doesn't draw the same again.
        number = len(self.study.get_trials(deepcopy=False))
        quality = -1 if self.plan.quality == "raw" else int(self.plan.quality)
        seed = int(np.random.SeedSequence([self.plan.sweep.seed, quality + 1, number]).generate_state(1)[0])
        self.study.sampler = self._sampler(seed)
        trial = self.study.ask(self.distributions)
        trial.set_user_attr("settings", self.plan.space.settings(trial.params))
        return trial.number

    def _sampler(self, seed: int) -> Any:
        from optuna.samplers import RandomSampler, TPESampler

        if self.plan.sweep.searcher.kind == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the liar is called experimental
            # Trials under way count as bad ones meanwhile, or all those asked for at once would be alike.
            startup = self.plan.sweep.searcher.startup_trials
            return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)

    def report(self, number: int, epoch: Epoch) -> None:
        """Put down a validation; one that is there already is left alone."""
        trial = self.trial(number)
        if any(known.epoch >= epoch.epoch for known in trial.epochs):
            return
        key = self._id(number)
        if epoch.value is not None:
            self._storage.set_trial_intermediate_value(key, epoch.epoch, epoch.value)
        known = [vars(each) for each in (*trial.epochs, epoch)]
        self._storage.set_trial_user_attr(key, "epochs", known)

    def end(self, number: int, state: State, seconds: float, reason: str = "") -> None:
        """Put down how a trial ended: `finished`, `stopped` or `failed`."""
        from optuna.trial import TrialState

        trial, key = self.trial(number), self._id(number)
        value = trial.best(self.maximize)
        if state != "failed" and value is None:
            state, reason = "failed", f"{self.plan.sweep.metric} was undefined in every epoch"
        self._storage.set_trial_user_attr(key, "seconds", trial.seconds + seconds)
        self.study.set_user_attr("wall", self._wall_before + time.monotonic() - self._began)
        if state == "failed":
            self._storage.set_trial_user_attr(key, "reason", reason)
            self.study.tell(number, state=TrialState.FAIL)
        elif state == "stopped":
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, value)

    def _id(self, number: int) -> int:
        return self.study.get_trials(deepcopy=False)[number]._trial_id

    def trial(self, number: int) -> Trial:
        """What is known of one."""
        return _known(self.study.get_trials(deepcopy=False)[number])

    def trials(self, *states: State) -> list[Trial]:
        """All trials, or those in some states, by number."""
        found = map(_known, self.study.get_trials(deepcopy=False))
        return [trial for trial in found if not states or trial.state in states]

    def ended(self) -> list[Trial]:
        """The trials that are at their ends, whichever."""
        return self.trials("finished", "stopped", "failed")

    @property
    def full_length(self) -> int:
        """Epochs of a trial that isn't stopped, by those that weren't; train.max_steps may end it early."""
        lengths = (len(trial.epochs) for trial in self.trials("finished"))
        return max(lengths, default=self.plan.base.train.epochs)

    @property
    def is_complete(self) -> bool:
        """Whether as many trials as were asked for have ended."""
        return len(self.ended()) >= self.plan.sweep.trials

    @property
    def wall(self) -> float:
        """Seconds that the search took, all its starts together, up to the last trial that ended."""
        return self.study.user_attrs.get("wall", 0.0)

    def start_clock(self) -> None:
        """The search goes on now."""
        self._began, self._wall_before = time.monotonic(), self.wall

    @property
    def is_concluded(self) -> bool:
        """Whether it is complete, and its results were written."""
        return self.is_complete and self.study.user_attrs.get("concluded") == self.plan.sweep.trials

    def conclude(self) -> None:
        """Its results are written."""
        self.study.set_user_attr("concluded", self.plan.sweep.trials)

    def best(self) -> Trial | None:
        """The best of the finished trials; of equal ones the first."""
        sign = 1 if self.maximize else -1
        return max(self.trials("finished"), key=lambda trial: sign * (trial.best(self.maximize) or 0), default=None)


def is_begun(plan: Plan) -> bool:
    """Whether there is a study already."""
    return (plan.folder / FILE).exists()


def _known(frozen: Any) -> Trial:
    from optuna.trial import TrialState

    states: Mapping[Any, State] = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "stopped",
        TrialState.FAIL: "failed",
    }
    attributes = frozen.user_attrs
    return Trial(
        frozen.number,
        states.get(frozen.state, "running"),
        attributes.get("settings", {}),
        tuple(Epoch(**each) for each in attributes.get("epochs", ())),
        attributes.get("reason", ""),
        frozen.params,
        attributes.get("seconds", 0.0),
    )


def _take(folder: Path) -> int:
    """Take a folder for this process until it ends. A number, since Ray pickles the study with its callbacks."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"storage: {folder} is in use by another sweep; wait for it, or give another name") from None
    return lock


def _mend(path: Path) -> None:
    """Drop a last line that a crash cut short, to which Optuna would add the next one."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def as_value(number: float) -> float | None:
    """NaN, of a metric that is undefined, has no place in JSON."""
    return number if math.isfinite(number) else None
