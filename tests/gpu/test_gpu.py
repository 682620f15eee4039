"""What only a GPU can show. Run with `pytest tests/gpu`; without a GPU these skip."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import Quality, open_shard_set
from fdtrain.data.loader import load_batches
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import ShardReader
from tests.gpu.conftest import Measured
from tests.gpu.runs import host_ranks, train, values
from tests.shards import write_root

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

QUALITIES: tuple[Quality, ...] = (77, 60, 15, 10)
CASES = [(mode, quality) for mode in ("baseline", "progressive") for quality in QUALITIES]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """256 px images at every quality, by mode; the lossless set lies with the first."""
    folder = tmp_path_factory.mktemp("modes")
    pairs, size = (3, 1, 1), 256
    return {
        "baseline": write_root(folder / "baseline", (*QUALITIES, "raw"), pairs, size=size),
        "progressive": write_root(
            folder / "progressive", QUALITIES, pairs, size=size, jpeg=JpegSettings(mode="progressive")
        ),
    }


def pixels(root: Path, quality: Quality, device: str, batch_size: int = 32) -> torch.Tensor:
    """The first images of a set by DALI on a device, int32 `[32, 3, H, W]` in main memory."""
    rows = np.arange(32)
    with ShardReader(open_shard_set(root, quality)) as reader:
        batches = load_batches(
            "dali",
            reader,
            [MicroBatch.of(part) for part in np.array_split(rows, len(rows) // batch_size)],
            batch_size=batch_size,
            device=torch.device(device),
            threads=2,
            prefetch=2,
        )
        return torch.cat([batch.images.cpu() for batch in batches]).int()


@pytest.mark.parametrize(("mode", "quality"), [*CASES, ("baseline", "raw")])
def test_a_gpu_decodes_the_pixels_of_a_cpu(
    roots: dict[str, Path], mode: str, quality: Quality, measured: Measured
) -> None:
    on_gpu, on_cpu = pixels(roots[mode], quality, "cuda"), pixels(roots[mode], quality, "cpu")
    difference = (on_gpu - on_cpu).abs()
    what = "raw PNG" if quality == "raw" else f"{mode} JPEG at {quality}"
    measured(
        f"DALI mixed against CPU, {what}: {(difference > 0).float().mean():.2%} of the values differ, by at most "
        f"{difference.max()}, {difference.float().mean():.4f} on the average"
    )
    assert difference.max() <= (0 if quality == "raw" else 3)
    assert difference.float().mean() < 0.5
    # Which images are decoded together changes nothing.
    assert torch.equal(pixels(roots[mode], quality, "cuda", batch_size=8), on_gpu)


@pytest.mark.parametrize(
    ("precision", "sync"),
    [("auto", False), ("fp16", False), ("bf16", False), ("fp32", False), ("tf32", False), ("auto", True)],
)
def test_a_training_on_all_gpus_resumes_to_the_same_bits(
    shard_root: Path, tmp_path: Path, precision: str, sync: bool, measured: Measured
) -> None:
    """With dropout, accumulation and moving averages."""
    settings: dict[str, object] = {
        "precision": precision,
        "engine__sync_batchnorm": str(sync).lower(),
        "deterministic": "true",
        "run__resume": "auto",
        "optim__schedule": "constant",
        "optim__ema_decay": 0.9,
    }
    same_bits(shard_root, tmp_path, settings)
    ranks = host_ranks()
    measured(f"resumed bit-identical: {ranks} ranks, {precision}" + (", synchronized batch normalization" * sync))


def same_bits(root: Path, folder: Path, settings: dict[str, object]) -> None:
    """Train 8 steps at once, and 4 and 4; compare losses and the files of the last checkpoint."""
    found = []
    for name, stops in (("whole", (8,)), ("resumed", (4, 8))):
        for steps in stops:
            log = train(root, folder / name, host_ranks(), train__max_steps=steps, **settings)
        checkpoint = folder / name / "checkpoints" / "step-00000008"
        files = [path for path in sorted(checkpoint.iterdir()) if path.name.endswith((".safetensors", ".pt"))]
        assert len(files) == 3 + host_ranks()
        found.append((values(log, "train/loss"), {path.name: path.read_bytes() for path in files}))
    assert found[0] == found[1]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_half_precision_learns(shard_root: Path, tmp_path: Path, precision: str, measured: Measured) -> None:
    measured(learns(shard_root, tmp_path / "run", precision))


def learns(root: Path, run: Path, precision: str, steps: int = 60) -> str:
    """Train in a precision, look whether it learns and what it counted, and say so."""
    batches = {"train__micro_batch_size": 8, "train__global_batch_size": 16 * host_ranks()}
    log = train(root, run, host_ranks(), precision=precision, train__max_steps=steps, **batches)
    losses, last = values(log, "train/loss"), [line for line in log if "train/loss" in line][-1]
    first_loss, last_loss = np.mean(losses[:10]), np.mean(losses[-10:])
    assert len(losses) == steps
    assert last_loss < first_loss
    assert last["train/nonfinite_steps"] == 0
    rescaled = last["train/rescaled_steps"]
    assert rescaled <= (20 if precision == "fp16" else 0)
    return f"{precision}: loss {first_loss:.3f} -> {last_loss:.3f} in {steps} steps, {rescaled} of them rescaled"
