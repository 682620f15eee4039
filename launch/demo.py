"""`python -m launch.demo`: the whole way once, on data that it makes itself.

Made-up FF++ videos -> face crops -> MozJPEG at every quality -> shards -> the study configs/studies/smoke.yaml:
trainings by torchrun, MLflow and its model registry, the matrix of qualities, the report. A second call goes on where
the first one stopped, and does nothing twice.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

QUALITIES = (77, 60, 15, 10, "raw")
FRAMES_PER_VIDEO = 6
CROP_SIZE = 160
"""Pixels. The study trains at this size: shrinking 256 px crops on the way would hide what the JPEG step did."""
STUDY = "configs/studies/smoke.yaml"


def main() -> int:
    """Run the demonstration; the exit code is that of the first step that fails."""
    about = f"{str(__doc__).splitlines()[0]} Further words are for launch.study, such as --train.epochs 3."
    parser = argparse.ArgumentParser(prog="python -m launch.demo", description=about, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the data, the runs and MLflow")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of the trainings")
    arguments, words = parser.parse_known_args()
    out: Path = arguments.out
    began = time.monotonic()

    videos, shards, study = out / "demo-data" / "ffpp", out / "demo-data" / "shards", out / "smoke"
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{out / 'mlflow.db'}"} | os.environ
    steps = {
        "made-up videos": ["-m", "datasets_shards", "demo", "--out", videos, "--seed", arguments.seed],
        "faces, crops, JPEG, shards": [
            *("-m", "datasets_shards", "pack", "--source", videos, "--out", shards),
            # The made-up faces are large: doubling the frames finds no more of them and takes four times as long.
            *("--frames-per-video", FRAMES_PER_VIDEO, "--upsample", 0, "--size", CROP_SIZE),
            *("--qualities", *QUALITIES),
        ],
        "trainings, evaluations, report": [
            *("-m", "launch.study", "--config", STUDY, "--study.dir", study, "--study.runs", f"{study}-"),
            *("--data.root", shards, "--seed", arguments.seed, *words),
        ],
    }
    for title, command in steps.items():
        print(f"\n== {title}", flush=True)
        if code := _run([sys.executable, *map(str, command)], environment):
            print(f"launch.demo: '{title}' failed with exit code {code}; what was finished is kept", file=sys.stderr)
            return code

    print("\nThese numbers are about made-up videos. They mean nothing for real detection.\n")
    print(f"videos       {videos}\nshards       {shards}")
    print(f"runs         {study}-*")
    print(f"MLflow       mlflow ui --backend-store-uri {environment['MLFLOW_TRACKING_URI']}")
    print(f"took         {time.monotonic() - began:.0f} s")
    return 0


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a step to its end; gives its exit code. It ends in its own time: Ctrl-C reaches it, SIGTERM is passed on."""
    process = subprocess.Popen(command, env=environment)
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
        while True:
            with suppress(KeyboardInterrupt):
                return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
