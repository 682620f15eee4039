"""Files of a store that fsspec opens: read with patience, checked, and their faults put into words.

What a store needs beside the URL (endpoint, profile, anonymous access) comes from where its own tools look for it, such
as `AWS_ENDPOINT_URL` and `AWS_PROFILE`, or from fsspec's configuration (`FSSPEC_S3_ANON=true`).
"""

import hashlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TypeVar

import fsspec
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter

from datasets_shards.schema import ShardSetError
from fdtrain.config import HostError, UserError, first_line
from fdtrain.data.cache import FetchCancelledError, ShardCache, explain_disk

BLOCK_BYTES = 8 << 20
BLOCKS_AHEAD = 4
"""One connection to an object store carries some tens of MB/s; several carry several times that."""

LONGEST_PAUSE_S = 30.0
"""Between two attempts; the first pauses are of about 1, 2, 4 and 8 s."""

T = TypeVar("T")
Blocks = Generator[bytes, None, None]

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
            ShardSetError: it is missing, or is not the file that the manifest lists.
            StoreError: the store refuses it, or is away for longer than there is patience.
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
        if not any(self._copy(cache, cancelled, descriptor) for _ in range(2)):
            raise ShardSetError(
                f"{self.url}: {self.bytes} bytes as the manifest says, but with another SHA-256, twice; it was changed "
                "since the set was packed: upload the set again"
            )

    def _copy(self, cache: ShardCache, cancelled: threading.Event | None, descriptor: int) -> bool:
        """Write all of it, and say whether it is what the manifest lists."""
        digest = hashlib.sha256()
        done = 0

        def go_on() -> None:
            """To the end, or to a fault: the next turn, with patience anew, begins behind the last good block."""
            nonlocal done
            began = done
            try:
                with closing(self._blocks(done)) as blocks:
                    for block in blocks:
                        cache.check_wanted(cancelled)
                        digest.update(block)
                        with _on_disk(cache):
                            _write_at(descriptor, block, done)
                        done += len(block)
            except Exception as error:
                if done == began or not _may_pass(error):
                    raise

        cache.check_wanted(cancelled)
        while done < self.bytes:
            patiently(self.url, go_on, cache, cancelled)
        return digest.hexdigest() == self.sha256

    def _blocks(self, first: int) -> Blocks:
        """Its content from a byte on, some blocks of it under way at a time."""
        files, path = fsspec.core.url_to_fs(self.url)
        size = files.info(path).get("size")  # None from a web server that doesn't say
        if size is not None and size != self.bytes:
            raise ShardSetError(
                f"{self.url}: {size} bytes where the manifest lists {self.bytes}; it was changed since the set was "
                "packed: upload the set again"
            )
        starts = iter(range(first, self.bytes, BLOCK_BYTES))
        coming: deque[tuple[int, Future[bytes]]] = deque()
        with ThreadPoolExecutor(BLOCKS_AHEAD, "fetch") as pool:

            def ask() -> None:
                if (start := next(starts, None)) is not None:
                    end = min(start + BLOCK_BYTES, self.bytes)
                    coming.append((end - start, pool.submit(files.cat_file, path, start=start, end=end)))

            try:
                for _ in range(BLOCKS_AHEAD):
                    ask()
                while coming:
                    length, future = coming.popleft()
                    block = future.result()
                    self._check_length(len(block), length)
                    ask()
                    yield block
            finally:
                pool.shutdown(cancel_futures=True)

    def _check_length(self, came: int, asked: int) -> None:
        if came > asked:
            raise StoreError(
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


class StoreError(HostError):
    """The store refuses a file, or can't be reached: no reason to take any sample in it for a bad one."""


def patiently(url: str, work: Callable[[], T], cache: ShardCache, cancelled: threading.Event | None = None) -> T:
    """Do what talks to a store, again after growing pauses where that may help (beyond its client's own attempts).

    Args:
        url: What is read.
        work: May be done again.
        cache: Has the patience; closing it ends a pause.
        cancelled: Likewise, once it is set.

    Raises:
        ShardSetError: the file is missing; one line with the URL, the fault and the remedy.
        StoreError: the store refuses it, or is away for too long; likewise.
        FetchCancelledError: nobody waits for it any longer.
    """

    def is_over(state: RetryCallState) -> bool:
        away = monotonic() - cache.away_since.setdefault(url, monotonic())
        return away + state.upcoming_sleep > cache.patience()

    def tell(state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        if state.attempt_number == 1 and isinstance(error, Exception):
            print(
                f"warning: {url}: can't be read for now ({_words(_cause(error))}); "
                f"trying again for {cache.patience():.0f} s",
                file=sys.stderr,
                flush=True,
            )

    attempts = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_exponential_jitter(max=LONGEST_PAUSE_S),  # or all ranks of a cluster would ask at the same moment
        stop=is_over,
        before_sleep=tell,
        sleep=lambda seconds: cache.pause(seconds, cancelled),
        reraise=True,
    )
    with explaining(url):
        done = attempts(work)
    cache.away_since.pop(url, None)
    return done


@contextmanager
def explaining(url: str) -> Iterator[None]:
    """Raise what a store's client raises as MissingError, StoreError or ShardSetError, in one line with the URL."""
    try:
        yield
    except (ShardSetError, UserError, FetchCancelledError):
        raise
    except Exception as error:
        raise _explained(url, _cause(error)) from error


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may get over it: all but what the store or its client has decided."""
    if not isinstance(error, Exception) or isinstance(error, ShardSetError | UserError | FetchCancelledError):
        return False
    error = _cause(error)
    if isinstance(error, TimeoutError):  # S3 says so by status 400
        return True
    status = _status(error)
    if status is not None:
        return status in (408, 425, 429) or status >= 500
    decided = (FileNotFoundError, PermissionError, ImportError, ValueError, TypeError, AttributeError)
    return not isinstance(error, decided) and type(error).__name__ not in _CREDENTIALS


def _cause(error: Exception) -> Exception:
    """What happened: fsspec's HTTP says "not found" of whatever goes wrong when it asks for a file's size."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and not isinstance(cause, LookupError):
        return error if _status(cause) in (404, 410) else cause
    return error


def _status(error: BaseException) -> int | None:
    """HTTP's, of the clients of fsspec's file systems; None where there was no answer."""
    for each in filter(None, (error, error.__cause__)):
        response = getattr(each, "response", None)
        if isinstance(response, dict):  # botocore's
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for name in ("status", "status_code", "code"):  # aiohttp's, Azure's, Google's
            if isinstance(status := getattr(each, name, None), int):
                return status
    return None


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _explained(url: str, error: Exception) -> ShardSetError | StoreError:
    """By the standard exceptions that fsspec's file systems share, else by name, so that no client is imported."""
    detail = first_line(error)
    if isinstance(error, FileNotFoundError):
        return MissingError(f"{url}: missing in the store ({detail}); check data.root, or upload the set again")
    if type(error).__name__ in _CREDENTIALS:
        return StoreError(
            f"{url}: no credentials ({detail}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or "
            "FSSPEC_S3_ANON=true for a public bucket"
        )
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return StoreError(f"{url}: access denied ({detail}); check the credentials and what they may read")
    if isinstance(error, ImportError):
        extra = "pip install 'fdtrain[s3]'" if url.startswith("s3:") else "install the package it names"
        return ShardSetError(f"{url}: its file system isn't installed ({detail}); {extra}")
    if isinstance(error, ValueError) and "rotocol" in detail:
        return ShardSetError(
            f"{url}: {detail}; data.root is a path or a URL that fsspec knows, such as s3://bucket/root"
        )
    return StoreError(f"{url}: can't be read ({_words(error)}); check the store and the network, then start again")


def read_whole(url: str) -> bytes:
    """A file's content. Raises what its file system does, as the two below: for `patiently`, or within `explaining`."""
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
