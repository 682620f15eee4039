"""What a rank pays for its share of a step, as large as it gets: `make benchmarks`.

Prints figures; asserts no time, since machines differ.
"""

import time

import numpy as np
import pytest

from fdtrain.data.plan import PlanSettings, TrainPlan

SAMPLES, WORLD_SIZE, MICRO_BATCH, STEPS = 1_800_000, 1024, 32, 300
ASKED_MS = 1.0

SETTINGS = {
    "full": PlanSettings(),
    "blocks": PlanSettings(shuffle="blocks"),
    "full, balance class": PlanSettings(balance="class"),
    "full, balance method": PlanSettings(balance="method"),
    "blocks, balance method": PlanSettings(shuffle="blocks", balance="method"),
    "full, four qualities mixed": PlanSettings(quality_weights=(1.0, 1.0, 1.0, 1.0)),
}


@pytest.mark.parametrize("accumulation", [1, 4])
def test_cost_of_a_step(accumulation: int) -> None:
    """Each step is another rank's, so nothing of the one before helps; every epoch's first step is among them."""
    rng = np.random.default_rng(0)
    method = rng.integers(0, 5, SAMPLES)
    groups = {"none": None, "class": (method > 0).astype(np.int8), "method": method}
    print(
        f"\n{SAMPLES} samples, world size {WORLD_SIZE}, {accumulation} micro-batches of {MICRO_BATCH} in a rank's step;"
        f" {STEPS} steps; below {ASKED_MS} ms is asked"
    )
    for name, settings in SETTINGS.items():
        began = time.perf_counter()
        size = MICRO_BATCH * WORLD_SIZE * accumulation
        plan = TrainPlan(np.arange(SAMPLES), 0, size, MICRO_BATCH, settings, groups[settings.balance])
        built = time.perf_counter() - began
        plan.micro_batches(0, 0, WORLD_SIZE)  # numpy's first call of anything is slow
        steps = np.arange(1, STEPS + 1)
        ranks = rng.integers(0, WORLD_SIZE, STEPS)
        seconds = np.empty(STEPS)
        for i, (step, rank) in enumerate(zip(steps.tolist(), ranks.tolist(), strict=True)):
            began = time.perf_counter()
            batches = plan.micro_batches(step, rank, WORLD_SIZE)
            seconds[i] = time.perf_counter() - began
            assert [len(batch.rows) for batch in batches] == [MICRO_BATCH] * accumulation
        first = seconds[steps % plan.steps_per_epoch == 0]
        mean, worst = 1e3 * seconds.mean(), 1e3 * seconds.max()
        print(
            f"{name:27s} mean {mean:.2f} ms, worst {worst:.2f} ms, first of an epoch {1e3 * first.mean():.2f} ms "
            f"(worst {1e3 * first.max():.2f}, {len(first)} of them); made once in {built:.3f} s"
        )
