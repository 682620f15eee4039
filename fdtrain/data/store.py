"""Files of a store that fsspec opens: read with patience, checked, and their faults put into words.

What a store needs beside the URL (endpoint, profile, anonymous access) comes from where its own tools look for it, such
as `AWS_ENDPOINT_URL` and `AWS_PROFILE`, or from fsspec's configuration (`FSSPEC_S3_ANON=true`).
"""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec

from datasets_shards.schema import ShardSetError
from fdtrain.config import HostError, UserError, first_line
from fdtrain.data.cache import FetchCancelledError, ShardCache, explain_disk

BLOCK_BYTES = 8 << 20
BLOCKS_AHEAD = 4
"""One connection to an object store carries some tens of MB/s; several carry several times that."""

T = TypeVar("T")

_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a store, as a manifest describes it.

    Args:
        url: Where it is.
        bytes: Its size.
        sha256: Of its content.
    """

    url: str
    bytes: int
    sha256: str

    def open_in(self, cache: ShardCache, cancelled: threading.Event | None = None) -> int:
        """A descriptor of its copy in the cache, fetched if need be; the caller closes it.

        Args:
            cache: Of this node.
            cancelled: Once it is set, a download is given up at its next block.

        Raises:
            ShardSetError: it can't be fetched, or is not the file that the manifest lists.
            UserError: the cache is too small or can't be used.
            FetchCancelledError: the cache was closed meanwhile, or `cancelled` set.
        """
        write = partial(self._fetch, cache, cancelled)
        return cache.open(*self.entry, self.bytes, write, cancelled)

    @property
    def entry(self) -> tuple[str, str]:
        """Identity and name in a cache."""
        return f"{self.url} {self.sha256}", self.url.rpartition("/")[2]

    def _fetch(self, cache: ShardCache, cancelled: threading.Event | None, descriptor: int) -> None:
        try:
            patiently(self.url, lambda: self._copy(cache, cancelled, descriptor))
        except _DamagedError:
            raise ShardSetError(
                f"{self.url}: {self.bytes} bytes as the manifest says, but with another SHA-256, twice; it was changed "
                "since the set was packed: upload the set again"
            ) from None

    def _copy(self, cache: ShardCache, cancelled: threading.Event | None, descriptor: int) -> None:
        cache.check_wanted(cancelled)
        files, path = fsspec.core.url_to_fs(self.url)
        size = files.info(path).get("size")  # None from a web server that doesn't say
        if size is not None and size != self.bytes:
            raise ShardSetError(
                f"{self.url}: {size} bytes where the manifest lists {self.bytes}; it was changed since the set was "
                "packed: upload the set again"
            )
        digest = hashlib.sha256()
        starts = iter(range(0, self.bytes, BLOCK_BYTES))
        blocks: deque[tuple[int, int, Future[bytes]]] = deque()
        with ThreadPoolExecutor(BLOCKS_AHEAD, "fetch") as pool:

            def ask() -> None:
                if (start := next(starts, None)) is not None:
                    end = min(start + BLOCK_BYTES, self.bytes)
                    blocks.append((start, end - start, pool.submit(files.cat_file, path, start=start, end=end)))

            try:
                for _ in range(BLOCKS_AHEAD):
                    ask()
                while blocks:
                    start, length, future = blocks.popleft()
                    block = future.result()
                    cache.check_wanted(cancelled)
                    self._check_length(len(block), length)
                    ask()
                    digest.update(block)
                    with _on_disk(cache):
                        _write_at(descriptor, block, start)
            finally:
                pool.shutdown(cancel_futures=True)
        if digest.hexdigest() != self.sha256:
            raise _DamagedError

    def _check_length(self, came: int, asked: int) -> None:
        if came > asked:
            raise ShardSetError(
                f"{self.url}: the server ignores byte ranges ({came} bytes came where {asked} were asked for); "
                "use a server that knows them, or a local copy"
            )
        if came < asked:
            raise OSError(f"{came} bytes came where {asked} were asked for")


def read_cached(file: RemoteFile, cache: ShardCache) -> bytes:
    """Its content, hashed also where the cache has it: a disk may have changed what was fetched long ago.

    Raises: as `RemoteFile.open_in`.
    """
    for attempt in range(2):
        with os.fdopen(file.open_in(cache), "rb") as copy:
            copy.seek(0)  # it may just have been written through this descriptor
            content = copy.read()
        if hashlib.sha256(content).hexdigest() == file.sha256:
            return content
        if attempt == 0:
            cache.discard(*file.entry)
    raise ShardSetError(f"{file.url}: its copy in {cache.folder} changes as soon as it is there; check that disk")


class MissingError(ShardSetError):
    """There is no such file in the store."""


class _DamagedError(Exception):
    pass


def patiently(url: str, work: Callable[[], T]) -> T:
    """Do what talks to a store, twice where that may help (beyond its client's own attempts).

    Raises:
        ShardSetError: one line with the URL, the fault and the remedy.
    """
    try:
        return work()
    except (ShardSetError, UserError, FetchCancelledError):
        raise
    except Exception as error:
        if _is_final(error):
            raise _explained(url, error) from error
    try:
        return work()
    except (ShardSetError, UserError, FetchCancelledError, _DamagedError):
        raise
    except Exception as error:
        raise _explained(url, error) from error


def _is_final(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | PermissionError | ImportError) or type(error).__name__ in _CREDENTIALS


def _explained(url: str, error: Exception) -> ShardSetError:
    """By the standard exceptions that fsspec's file systems share, else by name, so that no client is imported."""
    detail = first_line(error)
    if isinstance(error, FileNotFoundError):
        return MissingError(f"{url}: missing in the store ({detail}); check data.root, or upload the set again")
    if type(error).__name__ in _CREDENTIALS:
        return ShardSetError(
            f"{url}: no credentials ({detail}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or "
            "FSSPEC_S3_ANON=true for a public bucket"
        )
    if isinstance(error, PermissionError):
        return ShardSetError(f"{url}: access denied ({detail}); check the credentials and what they may read")
    if isinstance(error, ImportError):
        extra = "pip install 'fdtrain[s3]'" if url.startswith("s3:") else "install the package it names"
        return ShardSetError(f"{url}: its file system isn't installed ({detail}); {extra}")
    if isinstance(error, ValueError) and "rotocol" in detail:
        return ShardSetError(
            f"{url}: {detail}; data.root is a path or a URL that fsspec knows, such as s3://bucket/root"
        )
    return ShardSetError(
        f"{url}: can't be read ({type(error).__name__}: {detail}); check the store and the network, then start again"
    )


def read_whole(url: str) -> bytes:
    """A file's content. Raises what its file system does, as do the two below: call them by `patiently`."""
    files, path = fsspec.core.url_to_fs(url)
    return files.cat_file(path)


def size_of(url: str) -> int:
    """A file's size, bytes. Raises ShardSetError where the server doesn't tell it."""
    files, path = fsspec.core.url_to_fs(url)
    if (size := files.info(path).get("size")) is None:
        raise ShardSetError(f"{url}: its server doesn't tell its size; use another server or a local copy")
    return size


def list_sizes(url: str) -> dict[str, int]:
    """Name -> bytes of what is there, as far as the store tells sizes."""
    files, path = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    try:
        found = files.ls(path, detail=True)
    finally:
        files.invalidate_cache()  # it would answer `info` later on, when the store has changed
    return {Path(item["name"]).name: item["size"] for item in found if item.get("size") is not None}


def _write_at(descriptor: int, block: bytes, offset: int) -> None:
    """Unbuffered: what a full disk refuses is met here, not when a buffer is flushed later on."""
    rest = memoryview(block)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


@contextmanager
def _on_disk(cache: ShardCache) -> Iterator[None]:
    """Let an error of the local disk not pass for one of the store."""
    try:
        yield
    except OSError as error:
        raise HostError(explain_disk(cache.folder, error)) from None
