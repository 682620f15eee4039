"""The life of a worker process."""

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1


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
