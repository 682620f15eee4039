"""`python -m datasets_shards`: the commands of the offline stage."""

import errno
import os
import signal
import sys
from typing import NoReturn

from datasets_shards.cli import COMMANDS, PROG, build_parser
from datasets_shards.errors import InputError
from datasets_shards.schema import ShardSetError

GO_ON = ("faces", "pack")
RUN_ERROR = 1
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 1 (the data or the machine), 2 (the command line), 130 (interrupted).

    SIGTERM raises SystemExit with 143.
    """
    signal.signal(signal.SIGTERM, _terminate)
    args = build_parser().parse_args(argv)
    try:
        COMMANDS[args.command].run(args[args.command])
    except BrokenPipeError:  # whoever read our output has had enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (InputError, ShardSetError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; make room and run the same command again" if full else ""
        print(f"{PROG} {args.command}: error: {' '.join(str(error).split())}{remedy}", file=sys.stderr)
        return RUN_ERROR
    except KeyboardInterrupt:
        kept = "what is complete is kept, and the same command goes on" if args.command in GO_ON else "nothing is left"
        print(f"{PROG} {args.command}: interrupted; {kept}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _terminate(signum: int, _frame: object) -> NoReturn:
    sys.exit(128 + signum)  # an exception, so that what was begun is cleaned away


if __name__ == "__main__":
    sys.exit(main())
