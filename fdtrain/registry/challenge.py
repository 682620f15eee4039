"""Whether a new model becomes champion: only if it beats the champion on the same validation samples."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fdtrain.config import UserError
from fdtrain.metrics import SELECTION_METRIC, paired_bootstrap
from fdtrain.models.registered import registered_folder
from fdtrain.tracking import connect

CHAMPION = "champion"


@dataclass(frozen=True)
class Verdict:
    """What becomes of a new version.

    Args:
        is_champion: Whether it takes the alias.
        reason: Why, or why not.
        incumbent: Version that was champion when this was found; None where there was none.
    """

    is_champion: bool
    reason: str
    incumbent: str | None = None


@dataclass(frozen=True)
class Incumbent:
    """The champion that a new model has to beat.

    Args:
        version: Its number.
        folder: A copy of its model folder; None where it can't be had.
        fault: Why it can't.
    """

    version: str
    folder: Path | None
    fault: str = ""

    def stays(self, reason: str) -> Verdict:
        """The verdict where it couldn't be compared."""
        return Verdict(False, f"version {self.version} stays champion, since {reason}", self.version)


def fetch_champion(name: str, uri: str, out: Path) -> Incumbent | None:
    """The champion of a registered model, its folder copied to `out`; None where there is none.

    Args:
        name: Of the registered model.
        uri: Tracking URI.
        out: A folder, replaced.

    Raises:
        mlflow.exceptions.MlflowException: the server doesn't answer.
    """
    version = champion_version(connect(uri), name)
    return None if version is None else fetch_version(name, version, uri, out)


def fetch_version(name: str, version: str, uri: str, out: Path) -> Incumbent:
    """Fetch a version of a registered model, its folder copied to `out`. Args: and Raises: as `fetch_champion`."""
    try:
        with registered_folder(f"models:/{name}/{version}", uri) as folder:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(folder, out)
    except UserError as error:
        return Incumbent(version, None, str(error))
    return Incumbent(version, out)


def champion_version(client: Any, name: str) -> str | None:
    """Number of the version that is champion of a registered model; None where there is none, or no such model."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_registered_model(name).aliases.get(CHAMPION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if version is None else str(version)  # a database gives a number, a server a text


CUT = ("alignment", "margin", "unscaled_size", "dct_scale")
"""The keys of a crop record that say how crops are cut."""


def incomparable(incumbent: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """Say why a champion can't be judged on another model's validation split; empty where it can.

    It may have been trained on the people in it, or for other crops. What a card of an older release doesn't say counts
    as equal, but for the people: only the very same data is sure to have the same then.

    Args:
        incumbent: "trained_on" of the champion's `model.json`.
        candidate: That of the other model's.
    """
    if incumbent.get("data.digest") != candidate.get("data.digest"):
        theirs, own = incumbent.get("data.people"), candidate.get("data.people")
        if theirs is None or theirs != own:
            return "it was trained on other splits, so it may know people of this validation split"
    theirs, own = incumbent.get("data.compression"), candidate.get("data.compression")
    if theirs is not None and own is not None and theirs != own:
        return f"it was trained on videos of compression {theirs}, and this model on {own}"
    theirs, own = incumbent.get("crop") or {}, candidate.get("crop") or {}
    for key in CUT:
        if key in theirs and key in own and theirs[key] != own[key]:
            return f"it was trained on crops of {key} {theirs[key]}, and this model of {own[key]}"
    return ""


def judge(incumbent: Incumbent, its: pa.Table, candidate: pa.Table) -> Verdict:
    """Compare two models by the paired bootstrap of `val/video/auc`.

    Args:
        incumbent: The champion.
        its: Predictions of the champion for the validation samples, `PREDICTION_SCHEMA`.
        candidate: Those of the new model for the same samples.
    """
    found = paired_bootstrap(its, candidate, level="video", metric="auc")
    if math.isnan(found.low):
        return incumbent.stays(
            f"there is no interval for the difference of {SELECTION_METRIC}, {found.second:.4f} against "
            f"{found.first:.4f} on the same samples: too few groups of people, one class only, or no difference"
        )
    comparison = (
        f"{SELECTION_METRIC} {found.second:.4f} against {found.first:.4f} of version {incumbent.version} on the same "
        f"samples, difference {found.difference:+.4f}, 95 % interval {found.low:+.4f} to {found.high:+.4f}"
    )
    return Verdict(found.low > 0, comparison, incumbent.version)
