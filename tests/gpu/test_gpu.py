"""What only a GPU can show. Run with `pytest tests/gpu`; without a GPU these skip."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets_shards.schema import open_shard_set
from fdtrain.data.loader import load_batches
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import ShardReader
from tests.conftest import run_python, small_training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def test_nvjpeg_gives_the_pixels_of_a_cpu(shard_root: Path) -> None:
    pixels = {}
    for name in ("cpu", "cuda"):
        with ShardReader(open_shard_set(shard_root, 77)) as reader:
            batches = load_batches(
                "dali",
                reader,
                [MicroBatch.of(np.arange(32))],
                batch_size=32,
                device=torch.device(name),
                threads=2,
                prefetch=2,
            )
            pixels[name] = next(batches).images.cpu().int()
            batches.close()
    difference = (pixels["cpu"] - pixels["cuda"]).abs()
    print(f"nvJPEG against CPU pixels: largest {difference.max().item()}, mean {difference.float().mean():.4f}")
    assert difference.max() <= 3


@pytest.mark.parametrize("precision", ["auto", "fp16", "bf16", "fp32", "tf32"])
def test_a_training_resumes_to_the_same_bits(shard_root: Path, tmp_path: Path, precision: str) -> None:
    weights = []
    for name, stops in (("whole", (8,)), ("resumed", (4, 8))):
        run = tmp_path / name
        for steps in stops:
            settings = {"precision": precision, "deterministic": "true", "run__resume": "auto"}
            words = small_training(
                shard_root, run, train__max_steps=steps, train__epochs=4, optim__schedule="constant", **settings
            )
            done = run_python("-m", *words)
            assert done.returncode == 0, done.stderr
        print(json.loads((run / "log.jsonl").read_text().splitlines()[-1]))
        weights.append((run / "checkpoints" / "step-00000008" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
