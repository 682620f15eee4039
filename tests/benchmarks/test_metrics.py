"""Metrics with intervals, and predictions of a million samples: `make benchmarks`.

Prints figures; asserts no time, since machines differ.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fdtrain.metrics import Samples, choose_thresholds, compute_metrics
from tests.benchmarks.table import Line
from tests.coverage import coverage, true_auc
from tests.predictions import simulated

THREADS = 1
DRAWS, REPETITIONS = 1000, 500
MILLION = 1_000_000
ASKED_MB = 300

WRITE = """
import resource, sys, time
from pathlib import Path
import numpy as np
from datasets_shards.columns import Columns
from datasets_shards.schema import INDEX_SCHEMA, Manifest, ShardSet
from fdtrain.evaluation import read_predictions, write_predictions
from fdtrain.metrics import compute_metrics

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

compute_metrics(read_predictions(Path(sys.argv[3])), "test", draws=100)  # the libraries, loaded
manifest = Manifest(77, {}, {"size": 256}, {}, {}, {}, {}, "")
shard_set = ShardSet(Path("."), manifest, Columns(Path(sys.argv[1]).read_bytes(), INDEX_SCHEMA))
rows = np.arange(shard_set.index.num_rows)
before = peak()
scores = np.random.default_rng(0).random(len(rows), np.float32)
write_predictions(Path(sys.argv[2]), shard_set, rows, scores)
written = peak()
compute_metrics(read_predictions(Path(sys.argv[2])), "test", draws=10)
print(before, written - before, peak() - before)
"""


def test_bootstrap_of_a_test_split(table: list[Line]) -> None:
    """FaceForensics++'s test split: 700 videos of 32 frames."""
    predictions = simulated(np.random.default_rng(0), frames=32)
    thresholds = choose_thresholds(predictions)
    compute_metrics(predictions, "test", thresholds=thresholds, draws=100)
    began = time.perf_counter()
    metrics = compute_metrics(predictions, "test", thresholds=thresholds, draws=DRAWS)
    seconds = time.perf_counter() - began
    samples = Samples.of(predictions)
    began = time.perf_counter()
    for _ in range(10):
        chosen = np.random.default_rng(0).integers(len(samples), size=len(samples))
        roc_auc_score(samples.labels[chosen], samples.scores[chosen])
    baseline = (time.perf_counter() - began) / 10 * DRAWS
    detail = f"{len(metrics) // 3} metrics; scikit-learn's roc_auc_score of each draw, one metric: {baseline:.1f} s"
    table.append(Line(f"intervals, {len(samples)} frames, {DRAWS} draws", f"{seconds:.2f} s", "below 2 s", detail))
    assert seconds < baseline * 5


@pytest.mark.parametrize("shift", [1.35, 2.55, 4.1])
def test_coverage(table: list[Line], shift: float) -> None:
    """70 pairs, two frames a video; how often the interval holds the true AUC."""
    found = coverage(np.random.default_rng(1), shift, REPETITIONS, DRAWS, 2)
    detail = "plain quantiles of resampled " + ", ".join(
        f"{what} {found[what]:.1%}" for what in ("clusters", "videos", "frames")
    )
    table.append(Line(f"coverage at an AUC of {true_auc(shift, 2):.3f}", f"{found['published']:.1%}", "95 %", detail))
    assert found["published"] > 0.9


def test_a_million_predictions(table: list[Line], tmp_path: Path) -> None:
    """The writing and measuring part of an evaluation, in a process of its own; there is no model."""
    import pyarrow.parquet as pq

    from fdtrain.metrics import PREDICTION_SCHEMA

    pq.write_table(million_rows(), tmp_path / "index.parquet")
    small = simulated(np.random.default_rng(0), pairs=6)
    pq.write_table(small.cast(PREDICTION_SCHEMA), tmp_path / "small.parquet")
    words = [tmp_path / "index.parquet", tmp_path / "out.parquet", tmp_path / "small.parquet"]
    done = subprocess.run([sys.executable, "-c", WRITE, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, written, measured = map(float, done.stdout.split())
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == MILLION
    detail = f"{written:.0f} MB after writing, with metrics {measured:.0f} MB, over {before:.0f} MB with the index"
    table.append(Line("a million predictions", f"{measured:.0f} MB", f"below {ASKED_MB} MB", detail))
    assert measured < ASKED_MB


def million_rows():
    """A made-up index of a million samples, 32 frames of each video, five methods."""
    import pyarrow as pa

    from datasets_shards.schema import INDEX_SCHEMA

    methods = ("youtube", "Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")
    numbers = np.arange(MILLION)
    video, frame = numbers // 32, numbers % 32
    method, target = video % 5, video // 5
    names = [
        f"{t:05d}" if m == 0 else f"{t:05d}_{t ^ 1:05d}" for m, t in zip(method.tolist(), target.tolist(), strict=True)
    ]
    columns = {
        "key": [
            f"{methods[m]}-{name}-{f:05d}" for m, name, f in zip(method.tolist(), names, frame.tolist(), strict=True)
        ],
        "split": pa.DictionaryArray.from_arrays(np.zeros(MILLION, np.int8), ["test"]),
        "shard": pa.DictionaryArray.from_arrays(
            (numbers // 50_000).astype(np.int32), [f"test-{i:06d}.tar" for i in range(20)]
        ),
        "offset": numbers * 8192,
        "size": np.full(MILLION, 8000),
        "crc32": numbers.astype(np.uint32),
        "label": (method > 0).astype(np.int8),
        "method": pa.DictionaryArray.from_arrays(method.astype(np.int8), list(methods)),
        "video": names,
        "target": [f"{t:05d}" for t in target.tolist()],
        "source": ["" if m == 0 else f"{t ^ 1:05d}" for m, t in zip(method.tolist(), target.tolist(), strict=True)],
        "frame": frame.astype(np.int32),
        "width": np.full(MILLION, 256, np.int32),
        "height": np.full(MILLION, 256, np.int32),
    }
    return pa.table(columns).cast(INDEX_SCHEMA)
