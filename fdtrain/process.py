"""The life of a worker process."""

import atexit
import ctypes
import os
import signal
import sys
import time
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_exit_code = 1


def die_with_launcher() -> None:
    """Ask the kernel to kill this worker when its torchrun is gone, however that died (Linux).

    Without it, a torchrun that is killed leaves workers that train on beside the resumed run. A process with no
    torchrun above it is left alone: its parent may be a shell that is meant to go. Call it first of all: a launcher
    that dies before this call is not noticed, and importing torch takes seconds.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def process_began() -> float:
    """When this process began, by `time.monotonic()`."""
    import psutil

    return time.monotonic() - (time.time() - psutil.Process().create_time())


def exit_with(code: int) -> NoReturn:
    """`sys.exit`, also for `exit_without_cleanup`, which can't know the code otherwise."""
    global _exit_code
    _exit_code = code
    sys.exit(code)


def exit_without_cleanup() -> None:
    """Let this process end at once when its turn comes, after its last message, and skip what libraries do then.

    A process group whose other ranks may be waiting elsewhere would hold it: NCCL's ends together on all ranks.
    """

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code)

    atexit.register(end)
