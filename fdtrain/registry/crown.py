"""Move the alias of champion, where others may be doing so at the same time.

MLflow can't set an alias on condition. So a version first claims the place of the one that it has beaten, then takes
the alias, then looks who else claims that place: of two that do, the later look sees the other's claim. Those two then
meet each other, the lower number defending, and both come to the same winner.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from fdtrain.registry.challenge import CHAMPION, Verdict, champion_version

CLAIM = "fdtrain.claim"
"""Tag of a version: whose place it has claimed, and when in seconds since 1970."""

NOBODY = "none"
CLAIM_S = 86400.0
"""How long a claim is looked at: clocks differ, and a registration may wait for a slow server."""

ROUNDS = 10
"""How often a champion may change meanwhile before a version gives up."""

Duel = Callable[[str, str], Verdict]
"""Compare two versions, the first defending; the verdict is on the second."""


def crown(client: Any, name: str, version: str, verdict: Verdict, duel: Duel) -> Verdict:
    """Make a version champion if its verdict says so and nobody else has become it meanwhile, or it beats that one too.

    Args:
        client: MLflow's.
        name: Of the registered model.
        version: The new one.
        verdict: On it, against the champion of before.
        duel: Of the new version and another one, whichever defends.

    Returns:
        The verdict in the end.

    Raises:
        mlflow.exceptions.MlflowException: the server doesn't take it.
    """
    for _ in range(ROUNDS):
        there = champion_version(client, name)
        if there == version or not verdict.is_champion:
            return verdict
        if there != verdict.incumbent:  # somebody else was faster
            verdict = duel(there, version) if there is not None else Verdict(True, verdict.reason)
            continue
        client.set_model_version_tag(name, version, CLAIM, f"{verdict.incumbent or NOBODY} {time.time():.0f}")
        _set_champion(client, name, version)
        for rival in _rivals(client, name, version, verdict.incumbent):
            lower, higher = sorted((version, rival), key=int)
            met = duel(lower, higher)
            if met.is_champion != (higher == version):
                _set_champion(client, name, rival)
                return Verdict(False, f"version {rival} became champion meanwhile: {met.reason}", rival)
            _set_champion(client, name, version)
            verdict = Verdict(True, f"{verdict.reason}; and against version {rival}: {met.reason}", verdict.incumbent)
        return verdict
    return Verdict(False, f"the champion changed {ROUNDS} times meanwhile", champion_version(client, name))


def _set_champion(client: Any, name: str, version: str) -> None:
    """Set the alias; of two that make a new one at the same moment MLflow's database refuses the later, once."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(name, CHAMPION, version)
    except MlflowException:
        client.set_registered_model_alias(name, CHAMPION, version)


def _rivals(client: Any, name: str, version: str, incumbent: str | None) -> Iterator[str]:
    """Yield the other versions that claim the same place, lowest number first."""
    now = time.time()
    others = client.search_model_versions(f"name='{name}'")
    for other in sorted(others, key=lambda each: int(each.version)):
        place, _, when = other.tags.get(CLAIM, "").partition(" ")
        if str(other.version) != version and place == (incumbent or NOBODY) and now - float(when) < CLAIM_S:
            yield str(other.version)
