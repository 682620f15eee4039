"""Files of an object store on the local disk: whole, bounded, least recently used out, one copy per node.

A cache folder holds `<digest>-<name>` for each whole file and a hidden `.<digest>-<name>.part` for each that is being
written. Every process of the node may use it at once, and nothing has to be running between them:

- A writer holds an flock on its part file, so that a file is fetched once; the kernel lets go of the lock when the
  process dies, and whoever finds a part file that nobody holds removes it.
- A part file has its final size from the start: what the folder's files add up to is what they will take when all
  writers are done.
- Space is made, and a whole file gets its name, under an flock on `.lock`.
- Readers get an open descriptor and take no lock: POSIX keeps a removed file readable for whoever has it open.
"""

import errno
import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from datasets_shards.schema import naming
from fdtrain.config import HostError, UserError

LOCK_NAME = ".lock"
WAIT_S = 0.02
"""Between two looks at what another process is doing."""

PATIENCE_S = 300.0
"""How long a store may be away: half of what ranks wait for each other by default (`engine.timeout_minutes`)."""

# Nothing else in the folder is ever counted or removed, whatever folder a person names.
_WHOLE = re.compile(r"[0-9a-f]{32}-.+")
_PART = re.compile(r"\.[0-9a-f]{32}-.+\.part")


class FetchCancelledError(RuntimeError):
    """A file was being fetched or awaited when the cache was closed, or the fetch cancelled."""


@dataclass(frozen=True)
class CacheCounters:
    """What a process had of its cache since it opened it.

    Args:
        hits: Times a file was asked for that was there.
        misses: Times it was not, and was fetched by this process or awaited from another.
        fetched_bytes: What this process fetched.
        evictions: Files this process removed to make room.
        waited_s: Seconds that threads of this process spent on misses, added up.
    """

    hits: int = 0
    misses: int = 0
    fetched_bytes: int = 0
    evictions: int = 0
    waited_s: float = 0.0


class ShardCache:
    """A bounded folder of whole files. Safe for several threads and for several processes of a node.

    Args:
        folder: Made if need be; on a local disk, and of one user.
        max_bytes: What its files may add up to. A removed file that a process still has open comes on top of that.
        patience: Seconds that whoever fetches a file bears with a store that is away; 0 once nobody should wait.

    Raises:
        HostError: the folder can't be made, written or locked.
    """

    def __init__(self, folder: Path, max_bytes: int, patience: Callable[[], float] = lambda: PATIENCE_S) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.patience = patience
        self.away_since: dict[str, float] = {}
        """URL -> since when it can't be read: the threads that want the same file lose patience together."""
        self.closing = threading.Event()
        self._counters = CacheCounters()
        self._counting = threading.Lock()
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._sweep()

    def open(
        self,
        identity: str,
        name: str,
        size: int,
        write: Callable[[int], None],
        cancelled: threading.Event | None = None,
    ) -> int:
        """A descriptor of the whole file, for `os.pread`; the caller closes it.

        Args:
            identity: What tells this content from any other, such as its URL and SHA-256.
            name: For people who look into the folder.
            size: Bytes.
            write: Called where the file isn't there, with a descriptor to fill with exactly `size` bytes and to check:
                what it returns from becomes visible, what it raises goes to the caller and leaves nothing behind.
            cancelled: Once it is set, nobody waits for this file any longer.

        Raises:
            UserError: the file is larger than the cache.
            HostError: the folder can't be used, or its disk is full.
            FetchCancelledError: `close` was called meanwhile, or `cancelled` set.
        """
        self.require_room(name, size)
        entry = entry_name(identity, name)
        with self._explained():
            whole = self._open_whole(entry, size)
        if whole is not None:
            self._count(hits=1)
            return whole
        began = time.monotonic()
        try:
            return self._fetch(entry, size, write, cancelled)
        finally:
            self._count(misses=1, waited_s=time.monotonic() - began)

    def discard(self, identity: str, name: str) -> None:
        """Remove a file that turned out to be damaged, if it is there; who has it open keeps what he has."""
        with self._explained():
            (self.folder / entry_name(identity, name)).unlink(missing_ok=True)

    def require_room(self, name: str, size: int) -> None:
        """Raise UserError for a file that is larger than the whole cache."""
        if size > self.max_bytes:
            raise UserError(
                f"data.cache_bytes: {self.max_bytes} is less than the {size} bytes of {name} alone; "
                "raise it to several times that"
            )

    def check_wanted(self, cancelled: threading.Event | None) -> None:
        """Raise FetchCancelledError once the cache is closed or the event is set."""
        if self.closing.is_set() or (cancelled is not None and cancelled.is_set()):
            raise FetchCancelledError(f"{self.folder}: nobody waits for the file any longer")

    def pause(self, seconds: float, cancelled: threading.Event | None) -> None:
        """Wait before a store is asked again, not longer than there is patience. Raises as `check_wanted`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.patience() > 0:
            self._wait(cancelled)

    def counters(self) -> CacheCounters:
        """What this process had of the cache so far."""
        with self._counting:
            return self._counters

    def close(self) -> None:
        """Let no thread of this process wait for a file any longer. What is on the disk stays."""
        self.closing.set()

    def _fetch(self, entry: str, size: int, write: Callable[[int], None], cancelled: threading.Event | None) -> int:
        part = self.folder / f".{entry}.part"
        while True:
            with self._explained():
                # One of the two is there at any moment once somebody fetches: part first would miss the rename.
                descriptor = self._claim(part)
                whole = self._open_whole(entry, size)
                if whole is not None:
                    if descriptor is not None:  # empty: the file was finished before we came by
                        part.unlink(missing_ok=True)
                        os.close(descriptor)
                    return whole
            if descriptor is not None:
                break
            self._wait(cancelled)
        try:
            with self._explained():
                self._reserve(part, descriptor, size, cancelled)
            write(descriptor)
            with self._explained():
                if (found := os.fstat(descriptor).st_size) != size:
                    raise ValueError(f"{part}: {found} bytes were written instead of {size}")
                # A power cut must not leave a whole name on an empty file.
                os.fsync(descriptor)
                with self._locked():
                    os.utime(descriptor, ns=_now())
                    part.rename(self.folder / entry)
        except BaseException:
            if _is_at(descriptor, part):  # after the rename that name may be another's
                part.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        self._count(fetched_bytes=size)
        return descriptor

    def _open_whole(self, entry: str, size: int) -> int | None:
        path = self.folder / entry
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != size:  # someone else's doing: ours have their size before their name
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        touch(descriptor)
        return descriptor

    def _claim(self, part: Path) -> int | None:
        """Open the part file for this thread alone; None where another has it."""
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Between our opening and locking it, it may have been swept, or got its whole name.
        if _try_lock(descriptor) and _is_at(descriptor, part):
            os.ftruncate(descriptor, 0)  # a killed writer's bytes
            return descriptor
        os.close(descriptor)
        return None

    def _reserve(self, part: Path, descriptor: int, size: int, cancelled: threading.Event | None) -> None:
        while True:
            with self._locked():
                if self._make_room(part, size):
                    os.ftruncate(descriptor, size)
                    break
            self._wait(cancelled)  # for other writers, who need what is left; they wait for nobody
        try:
            os.posix_fallocate(descriptor, 0, size)  # a full disk is found before anything is downloaded
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # else a disk without it: found while writing
                raise

    def _make_room(self, own: Path, size: int) -> bool:
        """Remove the files that were not used for the longest time, and no more than needed; call it locked."""
        reserved = self._sweep(own)
        if reserved + size > self.max_bytes:
            return False
        entries = []
        for item in os.scandir(self.folder):
            if _WHOLE.fullmatch(item.name):
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:  # found by another to have a wrong size
                    continue
                entries.append((status.st_mtime_ns, item.name, status.st_size))
        excess = reserved + size + sum(length for _, _, length in entries) - self.max_bytes
        for _, name, length in sorted(entries):
            if excess <= 0:
                break
            (self.folder / name).unlink(missing_ok=True)
            self._count(evictions=1)
            excess -= length
        return True

    def _sweep(self, own: Path | None = None) -> int:
        """Remove the part files of writers that died; the bytes that the living ones will have written."""
        reserved = 0
        for item in os.scandir(self.folder):
            if not _PART.fullmatch(item.name) or (own is not None and item.name == own.name):
                continue
            path = self.folder / item.name
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                if not _try_lock(descriptor):
                    reserved += os.fstat(descriptor).st_size
                elif _is_at(descriptor, path):
                    path.unlink()
            finally:
                os.close(descriptor)
        return reserved

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process or thread at a time; held for moments only, so that waiting for it needs no end."""
        descriptor = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of an OSError which setting it is about."""
        try:
            with naming(self.folder):
                yield
        except OSError as error:
            raise HostError(explain_disk(self.folder, error)) from None

    def _wait(self, cancelled: threading.Event | None) -> None:
        self.closing.wait(WAIT_S)
        self.check_wanted(cancelled)

    def _count(self, **more: float) -> None:
        with self._counting:
            added = {name: getattr(self._counters, name) + value for name, value in more.items()}
            self._counters = replace(self._counters, **added)


def entry_name(identity: str, name: str) -> str:
    """The name of a whole file in the cache folder."""
    safe = re.sub(r"[^\w.-]", "_", name)[-80:]
    return f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}-{safe}"


def touch(descriptor: int) -> None:
    """Note that a file was used now. Not left to the access time, which mounts keep loosely or not at all."""
    os.utime(descriptor, ns=_now())


def explain_disk(folder: Path, error: OSError) -> str:
    """One line for an error of the cache folder's disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"data.cache_dir: {folder}: {error.strerror}; lower data.cache_bytes or choose another disk"
    if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
        return f"data.cache_dir: {folder} can't be locked ({error.strerror}); choose a folder on a local disk"
    return f"data.cache_dir: {error.filename or folder} can't be used ({error.strerror}); choose another folder"


def _now() -> tuple[int, int]:
    now = time.time_ns()  # finer than the kernel's own stamps, which are some milliseconds apart
    return now, now


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
