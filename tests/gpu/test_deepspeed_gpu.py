"""DeepSpeed's ZeRO 0 to 3 on all GPUs against DDP: losses, and what each rank holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.conftest import Measured
from tests.gpu.runs import host_ranks
from tests.integration.test_deepspeed import STAGES, drive

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def apart(found: dict[str, Any], stage: str, clip: float) -> float:
    """The largest difference of the losses of 20 steps from DDP's."""
    theirs, ours = (np.array(found[f"{name} clip {clip}"]["losses"]) for name in (stage, "ddp"))
    assert len(ours) == 20
    return float(np.abs(theirs - ours).max())


def test_losses_are_those_of_ddp(tmp_path: Path, measured: Measured) -> None:
    found = drive(tmp_path, "fp32", "compare", ranks=host_ranks())["compare"]
    for clip in (0.0, 0.2):
        for stage in STAGES:
            difference = apart(found, stage, clip)
            measured(f"fp32, {host_ranks()} ranks, clipping {clip}: losses of {stage} within {difference:.1e} of DDP's")
            # A GPU's sums come in no fixed order, and Adam makes more of what differs by it.
            assert difference < 1e-2
            assert set(found[f"{stage} clip {clip}"]["outcomes"]) == {"applied"}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_learns_under_every_stage(tmp_path: Path, precision: str, measured: Measured) -> None:
    found = drive(tmp_path, precision, "compare_clipped", ranks=host_ranks())["compare_clipped"]
    for name, run in found.items():
        measured(f"{precision} {name}: losses {run['losses'][0]:.3f} -> {run['losses'][-1]:.3f}, {run['outcomes']}")
        assert "nonfinite" not in run["outcomes"]
        assert run["outcomes"][-1] == "applied"
        assert run["losses"] == pytest.approx(found["ddp"]["losses"], abs=0.1)


def test_what_each_rank_holds(tmp_path: Path, measured: Measured) -> None:
    """Of EfficientNet-B4, each engine in a process of its own."""
    for engine in ("ddp", *STAGES):
        what = f"memory:{engine}:efficientnet_b4"
        ranks = drive(tmp_path, "fp32", what, ranks=host_ranks())[what]["ranks"]
        measured(f"{engine}, efficientnet_b4: {json.dumps(ranks)}")
        assert all(rank["peak_gpu"] > rank["state_bytes"] > 0 for rank in ranks)
