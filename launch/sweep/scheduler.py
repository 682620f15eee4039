"""When a trial is stopped: Ray Tune's ASHA, over trials that keep their numbers when a sweep goes on.

Imports Ray, so it is imported where a search begins.
"""

from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from launch.sweep.plan import Plan
from launch.sweep.study import Trial


@dataclass(frozen=True)
class _Numbered:
    """All that ASHA asks of a trial."""

    trial_id: str


class NumberedAsha(ASHAScheduler):
    """ASHA that knows trials by their numbers in the study.

    Ray gives a trial another id whenever its sweep goes on, and forgets the rungs. This one is told what was reported
    before, and a trial that goes on doesn't stand in a rung twice. Nothing is stopped at its last epoch.

    Args:
        plan: Of the search.
        before: Trials that have reported something.
    """

    def __init__(self, plan: Plan, before: list[Trial]) -> None:
        scheduler = plan.sweep.scheduler
        self._epochs = plan.base.train.epochs
        self._value = plan.sweep.metric
        self.stopped: set[int] = set()
        """Numbers of trials that it has stopped."""
        super().__init__(
            time_attr="epoch",
            metric=plan.sweep.metric,
            mode="max" if plan.sweep.maximize else "min",
            max_t=self._epochs,
            grace_period=scheduler.grace_epochs,
            reduction_factor=scheduler.reduction_factor,
            stop_last_trials=False,
        )
        for trial in before:
            known: Any = _Numbered(str(trial.number))
            nobody: Any = None  # ASHA has no use for Tune's controller
            super().on_trial_add(nobody, known)
            for epoch in trial.epochs:
                if epoch.value is not None and epoch.epoch < self._epochs:
                    super().on_trial_result(nobody, known, {"epoch": epoch.epoch, self._value: epoch.value})

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """It has them already."""
        return True

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """A trial begins or goes on."""
        super().on_trial_add(controller, _numbered(trial))

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether it goes on after this validation."""
        if result.get("epoch", self._epochs) >= self._epochs:
            return TrialScheduler.CONTINUE
        action = super().on_trial_result(controller, _numbered(trial), result)
        if action == TrialScheduler.STOP:
            self.stopped.add(trial.config["number"])
        return action

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its last result was seen already."""

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        """What it has reported stays in the rungs."""


class NoScheduler(FIFOScheduler):
    """Stops nothing."""

    stopped: frozenset[int] = frozenset()


def _numbered(trial: Any) -> Any:
    return _Numbered(str(trial.config["number"]))
