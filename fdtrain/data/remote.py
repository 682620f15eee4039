"""Shard sets by path or by URL: `s3://bucket/root` and whatever else fsspec opens, through the cache of the node.

What a store needs beside the URL (endpoint, profile, anonymous access) comes from where its own tools look for it, such
as `AWS_ENDPOINT_URL` and `AWS_PROFILE`, or from fsspec's configuration (`FSSPEC_S3_ANON=true`).
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow.parquet as pq

from datasets_shards.schema import (
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    Manifest,
    Quality,
    ShardSet,
    ShardSetError,
    TarEntry,
    open_shard_set,
    quality_name,
)
from fdtrain.config import UserError
from fdtrain.data.cache import CacheClosedError, CacheCounters, ShardCache, explain_disk
from fdtrain.data.tars import Descriptor, LocalTars, Tars

BLOCK_BYTES = 8 << 20
BLOCKS_AHEAD = 4
"""One connection to an object store carries some tens of MB/s; several carry several times that."""

T = TypeVar("T")

_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")


def is_remote(root: str) -> bool:
    """Whether `data.root` is a URL rather than a path."""
    return "://" in root


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

    def open_in(self, cache: ShardCache) -> int:
        """A descriptor of its copy in the cache, fetched if need be; the caller closes it.

        Raises:
            ShardSetError: it can't be fetched, or is not the file that the manifest lists.
            UserError: the cache is too small or can't be used.
        """
        name = self.url.rpartition("/")[2]
        return cache.open(f"{self.url} {self.sha256}", name, self.bytes, partial(self._fetch, cache))

    def _fetch(self, cache: ShardCache, descriptor: int) -> None:
        try:
            _patiently(self.url, lambda: self._copy(cache, descriptor))
        except _DamagedError:
            raise ShardSetError(
                f"{self.url}: {self.bytes} bytes as the manifest says, but with another SHA-256, twice; it was changed "
                "since the set was packed: upload the set again"
            ) from None

    def _copy(self, cache: ShardCache, descriptor: int) -> None:
        files, path = fsspec.core.url_to_fs(self.url)
        size = files.info(path).get("size")  # None from a web server that doesn't say
        if size is not None and size != self.bytes:
            raise ShardSetError(
                f"{self.url}: {size} bytes where the manifest lists {self.bytes}; it was changed since the set was "
                "packed: upload the set again"
            )
        digest = hashlib.sha256()
        starts = iter(range(0, self.bytes, BLOCK_BYTES))
        blocks: deque[tuple[int, Future[bytes]]] = deque()
        with ThreadPoolExecutor(BLOCKS_AHEAD, "fetch") as pool, os.fdopen(descriptor, "wb", closefd=False) as out:
            out.seek(0)

            def ask() -> None:
                if (start := next(starts, None)) is not None:
                    end = min(start + BLOCK_BYTES, self.bytes)
                    blocks.append((end - start, pool.submit(files.cat_file, path, start=start, end=end)))

            try:
                for _ in range(BLOCKS_AHEAD):
                    ask()
                while blocks:
                    length, future = blocks.popleft()
                    block = future.result()
                    if cache.closing.is_set():
                        raise CacheClosedError(f"{self.url}: the cache was closed")
                    if len(block) != length:
                        raise OSError(f"{len(block)} bytes came where {length} were asked for")
                    ask()
                    digest.update(block)
                    _write(cache, partial(out.write, block))
                _write(cache, out.flush)
            finally:
                pool.shutdown(cancel_futures=True)
        if digest.hexdigest() != self.sha256:
            raise _DamagedError


class CachedTars(Tars):
    """Tars of a set in a store, fetched whole when first read.

    Args:
        url: Of the set's folder.
        tars: As the manifest lists them.
        cache: Where the copies are; it is closed with this.
        fetches: Tars that `prepare` fetches at a time.
    """

    def __init__(self, url: str, tars: dict[str, TarEntry], cache: ShardCache, fetches: int = 2) -> None:
        remedy = f"delete {cache.folder} and start again; if that doesn't help, upload the set again"
        super().__init__(url, tars, remedy)
        self.cache = cache
        self._coming: dict[str, Future[Descriptor]] = {}
        self._fetches = ThreadPoolExecutor(fetches, "tars")

    def prepare(self, names: Iterable[str]) -> None:
        """Begin to fetch tars that will be read soon, in this order. An error is met again, and raised, by `read`."""
        with self._lock:
            self._coming = {name: future for name, future in self._coming.items() if not future.done()}
            for name in names:
                if name not in self._open and name not in self._coming:
                    self._coming[name] = self._fetches.submit(self._tar, name)

    def counters(self) -> CacheCounters:
        """Those of the cache, a read from a tar that is open being a hit as well."""
        counters = self.cache.counters()
        with self._lock:
            return replace(counters, hits=counters.hits + self._reused)

    def close(self) -> None:
        """Close the tars; a download that is under way is given up."""
        self.cache.close()
        self._fetches.shutdown(cancel_futures=True)
        super().close()

    def _tar(self, name: str) -> "Descriptor":
        tar = super()._tar(name)
        tar.touch()
        return tar

    def _open_tar(self, name: str, entry: TarEntry) -> int:
        return RemoteFile(f"{self.place}/{name}", entry.bytes, entry.sha256).open_in(self.cache)

    def _opened(self) -> None:
        # What was evicted gives its space back only when nobody has it open any more.
        for name in [name for name, tar in self._open.items() if os.fstat(tar.number).st_nlink == 0]:
            del self._open[name]


def open_cache(root: str, folder: str | None, max_bytes: int) -> ShardCache | None:
    """The cache that a root by URL is read through; None for a root by path.

    Raises:
        UserError: a URL without a folder for the cache, or a folder that can't be used.
    """
    if not is_remote(root):
        return None
    if folder is None:
        raise UserError(f"data.cache_dir: not set, and {root} is read through a cache; name a folder on a local disk")
    return ShardCache(Path(folder), max_bytes)


def open_set(root: str, quality: Quality, cache: ShardCache | None) -> tuple[ShardSet, Tars]:
    """Open `<root>/<quality>` and its tars; `root` is a path or a URL.

    The `folder` of a remote set is the cache's. Its index is read through the cache, its manifest is fetched anew.

    Args:
        root: `data.root`.
        quality: Of the set.
        cache: Of this node; only a URL needs one.

    Raises:
        ShardSetError: as `open_shard_set`, or the store can't be reached.
        UserError: the cache can't be used.
    """
    if not is_remote(root):
        local = open_shard_set(Path(root), quality)
        return local, LocalTars(local)
    assert cache is not None, "a URL is read through a cache"
    root = root.rstrip("/")
    url = f"{root}/{quality_name(quality)}"
    try:
        text = _patiently(f"{url}/{MANIFEST_NAME}", lambda: _read(f"{url}/{MANIFEST_NAME}"))
    except _MissingError as error:
        there = _there(root)
        raise ShardSetError(f"{root}: holds no set of quality {quality}; {there} ({error.__cause__})") from None
    manifest = Manifest.parse(text, url)
    sizes = _patiently(url, lambda: _list(url))
    for name, tar in manifest.tars.items() if INDEX_NAME in sizes else ():  # else it doesn't list them
        if (size := sizes.get(name)) != tar.bytes:
            found = "missing" if size is None else f"{size} bytes"
            raise ShardSetError(f"{url}/{name}: {found} where the manifest lists {tar.bytes}; upload the set again")
    index_url = f"{url}/{INDEX_NAME}"
    index = RemoteFile(index_url, _patiently(index_url, lambda: _size(index_url)), manifest.index_sha256)
    with os.fdopen(index.open_in(cache), "rb") as file:
        table = pq.read_table(file, schema=INDEX_SCHEMA)
    return ShardSet(cache.folder, manifest, table), CachedTars(url, manifest.tars, cache)


def split_bytes(manifest: Manifest, split: str) -> int:
    """What the tars of one split add up to, for `check_cache_fits`."""
    return sum(tar.bytes for name, tar in manifest.tars.items() if name.startswith(f"{split}-"))


class _MissingError(ShardSetError):
    pass


class _DamagedError(Exception):
    pass


def _patiently(url: str, work: Callable[[], T]) -> T:
    """Do what talks to a store, twice where that may help (beyond its client's own attempts).

    Raises:
        ShardSetError: one line with the URL, the fault and the remedy.
    """
    try:
        return work()
    except (ShardSetError, UserError, CacheClosedError):
        raise
    except Exception as error:
        if _is_final(error):
            raise _explained(url, error) from error
    try:
        return work()
    except (ShardSetError, UserError, CacheClosedError, _DamagedError):
        raise
    except Exception as error:
        raise _explained(url, error) from error


def _is_final(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | PermissionError | ImportError) or type(error).__name__ in _CREDENTIALS


def _explained(url: str, error: Exception) -> ShardSetError:
    """By the standard exceptions that fsspec's file systems share, else by name, so that no client is imported."""
    first_line = (str(error).splitlines() or [""])[0]
    detail = first_line or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return _MissingError(f"{url}: missing in the store ({detail}); check data.root, or upload the set again")
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


def _read(url: str) -> bytes:
    files, path = fsspec.core.url_to_fs(url)
    return files.cat_file(path)


def _size(url: str) -> int:
    files, path = fsspec.core.url_to_fs(url)
    if (size := files.info(path).get("size")) is None:
        raise ShardSetError(f"{url}: its server doesn't tell its size; use another server or a local copy")
    return size


def _list(url: str) -> dict[str, int]:
    """Name -> bytes of what is there; empty where the store doesn't list, or not with sizes."""
    files, path = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    try:
        found = files.ls(path, detail=True)
    except PermissionError:  # reading may be allowed all the same: a missing tar is then met when it is read
        return {}
    finally:
        files.invalidate_cache()  # it would answer `info` later on, when the store has changed
    return {Path(item["name"]).name: item["size"] for item in found if item.get("size") is not None}


def _there(root: str) -> str:
    files, path = fsspec.core.url_to_fs(root)
    try:
        found = _patiently(root, lambda: files.glob(f"{path}/*/{MANIFEST_NAME}"))
    except ShardSetError:  # listing may be forbidden; what is missing is the news
        return "what it has can't be listed"
    finally:
        files.invalidate_cache()
    return f"it has {', '.join(sorted(Path(name).parent.name for name in found)) or 'none at all'}"


def _write(cache: ShardCache, work: Callable[[], Any]) -> None:
    """Let an error of the local disk not pass for one of the store."""
    try:
        work()
    except OSError as error:
        raise UserError(explain_disk(cache.folder, error)) from None
