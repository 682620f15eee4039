"""One training on 1, 2 and 4 ranks with one global batch: the same samples in every step, and nearly the same losses.

Micro-batches, random draws and batch normalization are the same on any number of ranks; what differs is the order in
which gradients are summed, which rounds otherwise, and more so with every step: `make benchmarks`.
"""

from pathlib import Path

import numpy as np
import pytest

from fdtrain.config import Config, DataConfig, TrainConfig
from fdtrain.data.run_data import open_data
from tests.conftest import torchrun
from tests.integration.test_resume import losses_of, training

WORLD_SIZES, STEPS, GLOBAL_BATCH, MICRO_BATCH = (1, 2, 4), 24, 16, 4
EARLY_STEPS, EARLY_TOLERANCE, TOLERANCE = 6, 1e-5, 0.1
"""Of a loss, relative: in the first steps, and in all of them. A rounding grows by some two thirds with each step."""


@pytest.fixture(scope="module")
def curves(shard_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[int, float]]:
    """World size -> step -> training loss."""
    found = {}
    for ranks in WORLD_SIZES:
        run = tmp_path_factory.mktemp("worlds") / str(ranks)
        settings = {
            "train__max_steps": STEPS,
            "train__global_batch_size": GLOBAL_BATCH,
            "checkpoint__every_steps": 1000,
        }
        done = torchrun(ranks, *training(shard_root, run, **settings))
        assert done.returncode == 0, done.stderr
        found[ranks] = losses_of(run)
    return found


def test_loss_curves(curves: dict[int, dict[int, float]]) -> None:
    one = np.array([curves[1][step] for step in range(1, STEPS + 1)])
    print(f"\nloss of {STEPS} steps on one rank: {one[0]:.4f} to {one[-1]:.4f}")
    for ranks in WORLD_SIZES[1:]:
        other = np.array([curves[ranks][step] for step in range(1, STEPS + 1)])
        difference = np.abs(other / one - 1)
        early = difference[:EARLY_STEPS].max()
        print(
            f"{ranks} ranks: largest relative difference {early:.1e} in the first {EARLY_STEPS} steps, "
            f"{difference.max():.1e} in all (step {difference.argmax() + 1})"
        )
        assert early < EARLY_TOLERANCE
        assert difference.max() < TOLERANCE
        # The loss of any other step would not pass.
        assert np.abs(np.roll(one, 1) / one - 1)[:EARLY_STEPS].max() > 1000 * EARLY_TOLERANCE


def test_the_samples_of_a_step(shard_root: Path) -> None:
    config = Config(
        data=DataConfig(root=str(shard_root), quality=77, balance="method", shuffle="blocks", block_samples=8),
        train=TrainConfig(global_batch_size=GLOBAL_BATCH, micro_batch_size=MICRO_BATCH),
    )
    plan = open_data(config).plan
    steps = {}
    for ranks in WORLD_SIZES:
        shares = [[batch.rows for batch in plan.walk(0, STEPS, rank, ranks)] for rank in range(ranks)]
        in_turn = [batch for turn in zip(*shares, strict=True) for batch in turn]
        steps[ranks] = np.concatenate(in_turn).reshape(STEPS, GLOBAL_BATCH)
    for ranks in WORLD_SIZES[1:]:
        assert np.array_equal(steps[1], steps[ranks])
    print(f"\nrows of {STEPS} steps of {GLOBAL_BATCH}: the same on {', '.join(map(str, WORLD_SIZES))} ranks")
