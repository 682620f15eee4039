"""The tars of a shard set, open for reading, wherever they are."""

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from typing import Self

from datasets_shards.schema import ShardSet, ShardSetError, TarEntry, pack_again
from fdtrain.data.cache import touch

OPEN_TARS = 128
TOUCH_S = 1.0


class Tars(ABC):
    """The tars of one shard set, for reading. Safe for several threads; close it, or use it in a `with`.

    Tars are opened when they are first read, and the ones used last stay open: a large set has more of them than a
    process may have open files.

    Args:
        place: Folder or URL of the set.
        tars: As the manifest lists them.
        remedy: What to do about a tar that doesn't hold what the index says.
    """

    def __init__(self, place: str, tars: dict[str, TarEntry], remedy: str) -> None:
        self.place = place
        self.remedy = remedy
        self._tars = tars
        self._open: OrderedDict[str, Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        self._reused = 0

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of one tar; fewer than `size` where it ends before.

        Raises:
            ShardSetError: the tar is missing, is not the one that the manifest lists, or can't be read; the message
                names it.
        """
        try:
            # The descriptor stays open as long as this thread refers to it, whatever another drops meanwhile.
            return _read_at(self._tar(name), offset, size)
        except OSError as error:
            # A descriptor may be stale, as when a server was restarted: the next read opens the tar anew.
            with self._lock:
                self._open.pop(name, None)
            reason = error.strerror or error
            raise ShardSetError(
                f"{self.place}/{name}: can't be read ({reason}); check the disk that it is on, or {self.remedy}"
            ) from error

    def cancel(self) -> None:  # noqa: B027  (nothing to give up is the rule)
        """Give up what is being fetched, for a loader that is left early and would wait for it.

        Whoever waits for a fetch then gets an error that is no ShardSetError, so that nobody takes it for a bad sample.
        The tars stay usable: a later read fetches anew what was given up. Where nothing is fetched there is nothing to
        give up.
        """

    @abstractmethod
    def prepare(self, names: Iterable[str]) -> None:
        """Told which tars will be read soon."""

    def close(self) -> None:
        """Close the tars."""
        with self._lock:
            self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tar(self, name: str) -> "Descriptor":
        with self._lock:
            tar = self._open.get(name)
            if tar is not None:
                self._open.move_to_end(name)
                self._reused += 1
        if tar is None:  # opened outside the lock: a tar that has to be fetched must not hold up the others
            tar = Descriptor(self._open_tar(name, self._tars[name]))
            with self._lock:
                self._open[name] = tar
                while len(self._open) > OPEN_TARS:
                    self._open.popitem(last=False)
                self._opened()
        return tar

    @abstractmethod
    def _open_tar(self, name: str, entry: TarEntry) -> int:
        """A descriptor of a tar that isn't open."""

    @abstractmethod
    def _opened(self) -> None:
        """Called, locked, when one more tar is open."""


class LocalTars(Tars):
    """Tars of a set on a disk.

    Args:
        shard_set: The opened set.
    """

    def __init__(self, shard_set: ShardSet) -> None:
        super().__init__(str(shard_set.folder), shard_set.manifest.tars, pack_again(shard_set.folder))

    def prepare(self, names: Iterable[str]) -> None:
        """On a disk there is nothing to do for it."""

    def _open_tar(self, name: str, entry: TarEntry) -> int:
        path = f"{self.place}/{name}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ShardSetError(f"{path}: missing; {self.remedy}") from None
        if (size := os.fstat(descriptor).st_size) != entry.bytes:
            os.close(descriptor)
            raise ShardSetError(f"{path}: {size} bytes where the manifest lists {entry.bytes}; {self.remedy}")
        return descriptor

    def _opened(self) -> None:
        """Nothing on a disk is evicted."""


def _read_at(tar: "Descriptor", offset: int, size: int) -> bytes:
    # pread, not a memory map: a tar that shrinks under a map is a SIGBUS, here it is a short read.
    content = os.pread(tar.number, size, offset)
    while 0 < len(content) < size:  # a file system over a network may give less than there is
        more = os.pread(tar.number, size - len(content), offset + len(content))
        if not more:
            break
        content += more
    return content


class Descriptor:
    """An open file, closed when nobody refers to it any more."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._touched = time.monotonic()

    def touch(self) -> None:
        """Let the cache know that it is in use: reads from an open descriptor are not seen otherwise."""
        if (now := time.monotonic()) - self._touched > TOUCH_S:
            self._touched = now
            touch(self.number)

    def __del__(self) -> None:
        os.close(self.number)
