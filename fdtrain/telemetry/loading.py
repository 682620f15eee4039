"""What the loaders of all ranks have done."""

from collections.abc import Mapping

from fdtrain.data.intake import Intake
from fdtrain.runtime import Runtime


def loading_totals(
    intake: Intake, cache_counters: Mapping[str, float], runtime: Runtime
) -> tuple[dict[str, float], dict[int, str]]:
    """Seconds and counts summed over the ranks, and the faults of the bad rows of all of them. Collective."""
    own_bad = intake.bad_samples()
    counts = {**intake.take_seconds(), **cache_counters, "train/bad_samples": float(len(own_bad))}
    totals = {name: sum(ranks) for name, ranks in runtime.by_rank(counts).items()}
    bad: dict[int, str] = {}
    if totals["train/bad_samples"]:
        bad = {row: fault for rows in runtime.of_all_ranks(own_bad) for row, fault in rows.items()}
    totals["train/bad_samples"] = len(intake.before.union(bad))  # a row that several ranks met counts once
    return totals, bad


def bad_rows(intake: Intake, runtime: Runtime) -> list[int]:
    """The bad rows of the whole run on all ranks, for its checkpoint. Collective."""
    if not intake.skips:
        return []
    return sorted(intake.before.union(*runtime.of_all_ranks(intake.bad_samples())))
