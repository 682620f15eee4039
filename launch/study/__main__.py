"""`python -m launch.study --config configs/studies/smoke.yaml`."""

import sys
from collections.abc import Sequence

from datasets_shards.schema import ShardSetError
from fdtrain.config import HostError, UserError
from launch.study.run import run_study
from launch.study.settings import read_call

USAGE, FAILURE = 2, 1


def main(argv: Sequence[str]) -> int:
    """Exit code 0 (all is done), 1 (something is missing), 2 (wrong arguments), or 128 + the signal that came."""
    try:
        return run_study(read_call(argv))
    except HostError as error:
        return _fail(str(error), FAILURE)
    except (UserError, ShardSetError) as error:
        return _fail(str(error), USAGE)
    except OSError as error:  # a full disk, a file that may not be read
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}", FAILURE)


def _fail(message: str, code: int) -> int:
    print(f"python -m launch.study: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
