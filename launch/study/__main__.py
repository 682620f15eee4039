"""`python -m launch.study --config configs/studies/smoke.yaml`."""

import sys
from collections.abc import Sequence

from fdtrain.cli import exit_code
from launch.study.run import run_study
from launch.study.settings import read_call


def main(argv: Sequence[str]) -> int:
    """Exit code 0 (all is done), 1 (something is missing), 2 (wrong arguments), or 128 + the signal that came."""
    return exit_code("python -m launch.study", lambda: run_study(read_call(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
