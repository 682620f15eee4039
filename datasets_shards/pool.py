"""One video per core, in processes: they share no lock of Python's, and one amid a long video can be ended at once.

Each worker is single-threaded, so that two workers on two cores don't run on each other's time.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from datasets_shards.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
JOBS_UNDER_WAY_PER_WORKER = 2
"""One at work and one waiting: enough to keep a worker busy, and what bounds the memory."""


def default_workers() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    lost: Callable[[Job], Result] | None = None,
) -> Generator[Result, None, None]:
    """`function(job)` for every job, in the order of the jobs, over `workers` processes.

    At most `JOBS_UNDER_WAY_PER_WORKER * workers` jobs or results exist at a time. With one worker everything runs in
    this process. `function` and `jobs` must be picklable. An exception in a worker is raised here and ends the others;
    so does closing the generator, and a worker dies with this process however that ends.

    Args:
        function: what to do.
        jobs: with what.
        workers: number of processes.
        lost: gives what stands for a job that ends its worker, the first time among others and once more alone.

    Raises:
        InputError: a worker was killed, by the system for want of memory most likely, and there is no `lost`.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    queue = iter(jobs)
    pending: deque[Job] = deque()
    while True:
        try:
            yield from _map_until_lost(function, pending, queue, workers)
            return
        except BrokenProcessPool:
            if lost is None:
                why = f"one of {workers} workers was killed; if memory is short, use fewer --workers"
                raise InputError(why) from None
        # Which of the jobs under way it was nobody knows: they are done anew, one after another.
        while pending:
            try:
                yield from _map_until_lost(function, pending, iter(()), 1)
            except BrokenProcessPool:
                yield lost(pending.popleft())


def _map_until_lost(
    function: Callable[[Job], Result], pending: deque[Job], queue: Iterator[Job], workers: int
) -> Generator[Result, None, None]:
    """The results of the jobs in `pending` and, after them, `queue`, by a pool of its own.

    Jobs wait in `pending` until their result is handed on.

    Raises:
        BrokenProcessPool: a worker was killed.
    """
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare_worker, (os.getpid(),))
    futures: deque[Future[Result]] = deque()

    def submit(jobs: Iterable[Job]) -> None:
        with _signals_held():  # submitting may start a worker
            futures.extend(executor.submit(function, job) for job in jobs)

    try:
        pending.extend(islice(queue, max(0, JOBS_UNDER_WAY_PER_WORKER * workers - len(pending))))
        submit(pending)
        while pending:
            result = futures[0].result()
            following = list(islice(queue, 1))
            pending.extend(following)
            submit(following)
            futures.popleft()
            pending.popleft()
            yield result
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        processes = set(multiprocessing.active_children()) - others
        for process in processes:
            process.terminate()
        for process in processes:  # so that nobody writes any more where the caller cleans up
            process.join(10)
        raise
    executor.shutdown()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM while a worker is started: one that is half started can only crash, with a traceback.

    The mask is what the worker inherits, until it is ready to ignore Ctrl-C. It isn't enough for this process, where a
    thread of some library may take the signal, upon which Python runs the handler in the main thread all the same.
    """
    if threading.current_thread() is not threading.main_thread():  # has neither handlers to change nor need of it
        yield
        return
    arrived: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in STOP_SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)


def _prepare_worker(parent: int) -> None:
    os.environ["VIPS_CONCURRENCY"] = "1"  # libvips reads it when pyvips is first imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)
