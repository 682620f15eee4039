"""What Ray Tune reports of the trials: put down in the study, and told in short lines.

Imports Ray, so it is imported where a search begins.
"""

import math
import time
from pathlib import Path
from typing import Any

from ray import PlacementGroupID
from ray.tune import Callback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from datasets_shards.schema import quality_name
from launch.sweep.estimate import seconds_left
from launch.sweep.results import in_minutes, in_words
from launch.sweep.study import Epoch, Study, as_value


class Recorder(Callback):
    """Writes the study and a line for people, whenever something happens.

    Args:
        study: Of the search.
        scheduler: Knows whom it has stopped.
        parallel: Trials at a time.
    """

    def __init__(self, study: Study, scheduler: Any, parallel: int) -> None:
        self.study, self.scheduler, self.parallel = study, scheduler, parallel
        self._started: dict[int, float] = {}
        self._places: dict[int, str] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `Callback`."""
        number = trial.config["number"]
        if number not in self._started:
            known = self.study.trial(number)
            done = f" goes on after epoch {known.epochs[-1].epoch}" if known.epochs else ""
            self._say(number, f"{done or ' starts'}: {in_words(known.settings)}")
            self._started[number] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See `Callback`."""
        metric, number = self.study.plan.sweep.metric, trial.config["number"]
        if "place" in result:
            self._places[number] = result["place"]
        if metric in result:
            value = result[metric]
            self.study.report(number, Epoch(result["epoch"], as_value(value), result["seconds"]))
            shown = "undefined" if math.isnan(value) else f"{value:.4f}"
            self._say(number, f"  epoch {result['epoch']}/{self.study.plan.base.train.epochs}  {metric} {shown}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `Callback`. Of a trial that Ray ends with the sweep, nothing is known."""
        number, result = trial.config["number"], trial.last_result or {}
        if reason := result.get("failed"):
            self._end(number, "failed", reason)
        elif result.get("finished"):
            self._end(number, "finished")
        elif number in self.scheduler.stopped:
            self._end(number, "stopped")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `Callback`."""
        self._free(trial.config["number"])
        self._say(trial.config["number"], f"  crashed ({_last_line(trial)}); goes on from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `Callback`."""
        self._end(trial.config["number"], "failed", _last_line(trial))

    def _free(self, number: int) -> None:
        """Give its place in the cluster back at once; workers that are still there end with it."""
        if place := self._places.pop(number, None):
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(place))))

    def _end(self, number: int, state: Any, reason: str = "") -> None:
        self._free(number)
        self.study.end(number, state, time.monotonic() - self._started.pop(number, time.monotonic()), reason)
        trial = self.study.trial(number)
        text = {
            "finished": "  finished",
            "stopped": f"  stopped after epoch {trial.epochs[-1].epoch if trial.epochs else 0}",
            "failed": f"  failed: {trial.reason}",
        }[trial.state]
        ended, best = self.study.ended(), self.study.best()
        if best is not None:
            text += f"; best so far {best.best(self.study.maximize):.4f} (trial {best.number})"
        text += f"; {len(ended)} of {self.study.plan.sweep.trials} trials done"
        if left := seconds_left(self.study, self.parallel):
            text += f", the rest in about {in_minutes(left)}"
        self._say(number, text)

    def _say(self, number: int, text: str) -> None:
        print(f"{quality_name(self.study.plan.quality)} trial {number}{text}", flush=True)


def _last_line(trial: Any) -> str:
    """Why it crashed, as Ray puts it."""
    path = trial.error_file  # `get_error` reads the copy that Ray makes of it afterwards
    lines = Path(path).read_text(errors="replace").splitlines() if path else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "for no reason that Ray knows")[:200]
