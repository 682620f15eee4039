"""`python -m datasets_shards`: the commands of the offline stage."""

import signal
import sys
from typing import NoReturn

from datasets_shards.cli import COMMANDS, PROG, build_parser
from datasets_shards.errors import InputError
from datasets_shards.schema import ShardSetError

RUN_ERROR = 1
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 1 (the data or the machine), 2 (the command line), 130 (interrupted)."""
    signal.signal(signal.SIGTERM, _terminate)
    args = build_parser().parse_args(argv)
    try:
        COMMANDS[args.command].run(args[args.command])
    except (InputError, ShardSetError, OSError) as error:
        print(f"{PROG} {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return RUN_ERROR
    except KeyboardInterrupt:
        print(
            f"{PROG} {args.command}: interrupted; what is complete is kept, and the same command goes on",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


def _terminate(signum: int, _frame: object) -> NoReturn:
    sys.exit(128 + signum)  # an exception, so that what was begun is cleaned away


if __name__ == "__main__":
    sys.exit(main())
