"""How Ray Tune asks for the next trial. Imports Ray, so it is imported where a search begins."""

from typing import Any

from ray.tune.search import Searcher

from launch.sweep.study import Study


class StudySearcher(Searcher):
    """Hands out trials: first those that were under way when the sweep was left, then new ones.

    What comes of them is put down by `progress.Recorder`, which is told more of it.

    Args:
        study: Where they come from.
    """

    def __init__(self, study: Study) -> None:
        super().__init__(metric=study.plan.sweep.metric, mode="max" if study.maximize else "min")
        self.study = study
        self.left = [trial.number for trial in study.trials("running")]

    def suggest(self, trial_id: str) -> Any:
        """Number and settings of a trial; Ray's word for the end where there is none left."""
        if self.left:
            number = self.left.pop(0)
        elif len(self.study.trials()) < self.study.plan.sweep.trials:
            number = self.study.ask()
        else:
            return Searcher.FINISHED
        return {"number": number, "settings": self.study.trial(number).settings}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See above."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Likewise."""
