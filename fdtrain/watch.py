"""What became of the other ranks: heard in threads of their own, whatever the main thread waits for.

Under NCCL a rank waits for the others within the device, where it runs no Python: neither a signal nor an error of
another rank reaches it. Only gloo notices by itself that a connection broke.
"""

import ctypes
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from fdtrain.config import first_line

LEAVE_S = 20.0
"""What a rank gets to end by itself once it has heard of a loss: torchrun kills it 30 s after the loss."""

_WORDS = 512  # bytes
_SEND_S = 5.0
_FOREVER = timedelta(days=365)
_Handler = ctypes.CFUNCTYPE(None)


class RankWatch:
    """Hears on rank 0 of the end of each other rank, and on the others of rank 0's. Making one is collective.

    A rank leaves with its last words: none at an orderly end, else the reason. One that is killed leaves without, by a
    connection that breaks. Who hears of a loss and doesn't leave within `LEAVE_S` is stuck in a wait, and is ended.

    Args:
        rank: This rank.
        world_size: Number of ranks, at least two.
        timeout_minutes: The setting `engine.timeout_minutes`.
    """

    def __init__(self, rank: int, world_size: int, timeout_minutes: float) -> None:
        self.rank, self.timeout_minutes = rank, timeout_minutes
        self.on_loss: list[Callable[[str], None]] = []
        """Told the reason before the process is ended; on a thread that isn't the main one."""
        self.lost: dict[int, str] = {}
        """Ranks that didn't end orderly, and why."""
        # A group of its own: calls in that of training would interleave with training's.
        group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
        assert isinstance(group, dist.ProcessGroup)  # which has all ranks
        self._group = group
        self._heard, self._left = threading.Event(), threading.Event()
        others = range(1, world_size) if rank == 0 else (0,)
        self._threads = {other: self._start(self._hear, other) for other in others}
        self._terminate = TerminateHook(self._ended_by_cpp) if sys.platform.startswith("linux") else None

    def cause(self, seconds: float = 2.0) -> str | None:
        """Say which rank was lost and why; None where nothing was heard within some seconds."""
        self._heard.wait(seconds)
        return "; ".join(f"rank {rank} was lost: {words}" for rank, words in self.lost.items()) or None

    def leave(self, words: str = "") -> bool:
        """Tell the others, and where this is an orderly end, wait for them to leave.

        Args:
            words: Why this rank ends; empty at an orderly end.

        Returns:
            Whether all have ended orderly, so that the process group can be left in order.
        """
        self._left.set()
        if self._terminate:
            self._terminate.restore()
        senders = [self._start(self._tell, other, words) for other in self._threads]
        for sender in senders:
            sender.join(_SEND_S)
        if words:
            return False
        for thread in self._threads.values():
            thread.join(60 * self.timeout_minutes)
        is_orderly = not self.lost and not any(thread.is_alive() for thread in (*senders, *self._threads.values()))
        if is_orderly:
            del self._group
        return is_orderly

    def _start(self, work: Callable[..., None], *words: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=words, name="rank watch", daemon=True)
        thread.start()
        return thread

    def _tell(self, other: int, words: str) -> None:
        said = torch.zeros(_WORDS, dtype=torch.uint8)
        content = words.encode()[:_WORDS]
        said[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
        try:
            dist.send(said, dst=other, group=self._group)
        except RuntimeError as error:  # that one has gone before; whoever hears it first says so
            self.lost.setdefault(other, _without_words(error))

    def _hear(self, other: int) -> None:
        said = torch.zeros(_WORDS, dtype=torch.uint8)
        try:
            receiving = dist.irecv(said, src=other, group=self._group)
            assert receiving is not None  # this rank is in the group
            receiving.wait(_FOREVER)
            words = bytes(said.tolist()).rstrip(b"\0").decode(errors="replace")
        except RuntimeError as error:
            words = _without_words(error)
        if not words:
            return
        self.lost[other] = words
        self._heard.set()
        if not self._left.wait(LEAVE_S):
            self._end(f"{self.cause()}; this rank waited for it in vain")

    def _end(self, reason: str) -> None:
        try:
            self._report(reason)
            self.leave(reason)
        finally:
            os._exit(1)

    def _ended_by_cpp(self) -> None:
        self._report(
            "a thread of C++ ends this process, and says why itself; under NCCL that is the watchdog: most often a "
            f"rank was lost, or didn't answer within engine.timeout_minutes ({self.timeout_minutes:g})"
        )

    def _report(self, reason: str) -> None:
        """Message first: the status may be on a disk that is full."""
        where = f"rank {self.rank} on {socket.gethostname()}"
        print(f"python -m fdtrain: error: {where}: {reason}", file=sys.stderr, flush=True)
        for tell in self.on_loss:
            tell(reason)


def _without_words(error: RuntimeError) -> str:
    return f"its process ended without a word ({first_line(error)})"


class TerminateHook:
    """Have a function called before the process is aborted for a C++ exception that nothing catches.

    NCCL's watchdog throws one in its thread when a collective took too long, and so do others' threads. What is called
    next is the handler that was there, which says what the exception was and aborts.

    Args:
        report: Called first.
    """

    def __init__(self, report: Callable[[], None]) -> None:
        self._report = report
        self._library = ctypes.CDLL("libstdc++.so.6")
        self._set = self._library._ZSt13set_terminatePFvvE
        self._set.restype, self._set.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
        self._own = _Handler(self._call)  # kept: C++ holds its address alone
        self._before = self._set(ctypes.cast(self._own, ctypes.c_void_p))

    def restore(self) -> None:
        """Put the handler of before back."""
        self._set(self._before)

    def _call(self) -> None:
        try:
            self._report()
        except Exception:  # noqa: BLE001 - nobody above would see it
            traceback.print_exc()
        _Handler(self._before)()
