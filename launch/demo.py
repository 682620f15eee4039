"""`python -m launch.demo`: the whole way once, on data that it makes itself.

Made-up FF++ videos -> face crops -> MozJPEG at every quality -> shards -> torchrun with two ranks per quality -> test
metrics -> MLflow and its model registry. A second call goes on where the first one stopped, and does nothing twice.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from jsonargparse import ArgumentParser

from datasets_shards.schema import quality_name

QUALITIES = (77, 60, 15, 10)
FRAMES_PER_VIDEO = 6
RANKS = 2
NAMES = ("auc", "acc", "f1")
# A small network on small images: minutes on two cores. The rest is configs/meso4.yaml.
SETTINGS = {
    "config": "configs/meso4.yaml",
    "model.drop_rate": 0.1,
    "data.image_size": 128,
    "train.global_batch_size": 32,
    "train.micro_batch_size": 16,
    "optim.lr": 3e-3,
    "optim.warmup_steps": 20,
    "checkpoint.keep": 1,
    "run.resume": "auto",
}


def main() -> int:
    """Run the demonstration; the exit code is that of the first step that fails."""
    parser = ArgumentParser(prog="python -m launch.demo", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="Folder for the data, the runs and MLflow.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the data and of the training.")
    parser.add_argument("--qualities", type=int, nargs="+", default=list(QUALITIES), help="Qualities to train at.")
    parser.add_argument("--epochs", type=int, default=16, help="Epochs of each training.")
    arguments = parser.parse_args()
    out: Path = arguments.out
    began = time.monotonic()

    videos, shards = out / "demo-data" / "ffpp", out / "demo-data" / "shards"
    runs = {quality: out / f"demo-meso4-{quality_name(quality)}" for quality in arguments.qualities}
    # One compute thread for each rank, or two ranks on two cores fight for them.
    defaults = {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{out / 'mlflow.db'}"}
    environment = defaults | os.environ

    steps = {
        "made-up videos": ["-m", "datasets_shards", "demo", "--out", videos, "--seed", arguments.seed],
        "faces, crops, JPEG, shards": [
            *("-m", "datasets_shards", "pack", "--source", videos, "--out", shards),
            # The made-up faces are large: doubling the frames finds no more of them and takes four times as long.
            *("--frames-per-video", FRAMES_PER_VIDEO, "--upsample", 0, "--qualities", *arguments.qualities, "raw"),
        ],
    }
    for quality, run in runs.items():
        settings = SETTINGS | {"data.root": shards, "data.quality": quality, "run.dir": run, "seed": arguments.seed}
        settings["train.epochs"] = arguments.epochs
        steps[f"training at quality {quality}"] = [
            *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", RANKS, "-m", "fdtrain"),
            *(word for key, value in settings.items() for word in (f"--{key}", value)),
        ]
    for title, words in steps.items():
        print(f"\n== {title}", flush=True)
        code = subprocess.run([sys.executable, *map(str, words)], env=environment).returncode
        if code:
            print(f"launch.demo: '{title}' failed with exit code {code}; what was finished is kept", file=sys.stderr)
            return code

    print(f"\n{table(runs)}\n")
    print("These numbers are about made-up videos. They mean nothing for real detection.\n")
    print(f"videos       {videos}\nshards       {shards}")
    print(f"runs         {', '.join(map(str, runs.values()))}")
    print(f"MLflow       mlflow ui --backend-store-uri {environment['MLFLOW_TRACKING_URI']}")
    print(f"took         {time.monotonic() - began:.0f} s")
    return 0


def table(runs: dict[int, Path]) -> str:
    """Test AUC, ACC and F1 per quality, of frames and of videos, from each run's metrics.json."""
    lines = [
        "test metrics          frames                    videos",
        "quality          AUC    ACC     F1         AUC    ACC     F1",
    ]
    for quality, run in runs.items():
        metrics = json.loads((run / "metrics.json").read_bytes())
        cells = [
            [f"{value:6.3f}" if (value := metrics[f"test/{level}/{name}"]) is not None else "     -" for name in NAMES]
            for level in ("frame", "video")
        ]
        lines.append(f"{quality:7}       {' '.join(cells[0])}      {' '.join(cells[1])}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
