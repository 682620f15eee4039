"""Shard sets by path or by URL: `s3://bucket/root` and whatever else fsspec opens, through the cache of the node."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import fsspec

from datasets_shards.schema import (
    INDEX_NAME,
    MANIFEST_NAME,
    Manifest,
    Quality,
    ShardSet,
    ShardSetError,
    TarEntry,
    open_shard_set,
    quality_name,
    read_index,
)
from fdtrain.config import TransientError, UserError
from fdtrain.data.cache import PATIENCE_S, CacheCounters, ShardCache
from fdtrain.data.store import (
    MissingError,
    RemoteFile,
    StoreError,
    explaining,
    list_sizes,
    patiently,
    read_cached,
    read_whole,
    size_of,
)
from fdtrain.data.tars import Descriptor, LocalTars, Tars


def is_remote(root: str) -> bool:
    """Whether `data.root` is a URL rather than a path."""
    return "://" in root


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
        self._cancelled = threading.Event()  # another one after each `cancel`
        self._fetches = ThreadPoolExecutor(fetches, "tars")

    def prepare(self, names: Iterable[str]) -> None:
        """Begin to fetch tars that will be read soon, in this order. An error is met again, and raised, by `read`."""
        with self._lock:
            self._coming = {name: future for name, future in self._coming.items() if not future.done()}
            for name in names:
                if name not in self._open and name not in self._coming:
                    self._coming[name] = self._fetches.submit(self._tar, name)

    @property
    def reused(self) -> int:
        """Reads from a tar that was open already."""
        with self._lock:
            return self._reused

    def cancel(self) -> None:
        """Give up what is being fetched, at the next block of each tar; who reads from one gets FetchCancelledError.

        A tar that is asked for after that is fetched anew.
        """
        with self._lock:
            cancelled, self._cancelled = self._cancelled, threading.Event()
            for future in self._coming.values():
                future.cancel()
            self._coming.clear()
        cancelled.set()

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
        return RemoteFile(f"{self.place}/{name}", entry.bytes, entry.sha256).open_in(self.cache, self._cancelled)

    def _opened(self) -> None:
        # What was evicted gives its space back only when nobody has it open any more.
        for name in [name for name, tar in self._open.items() if os.fstat(tar.number).st_nlink == 0]:
            del self._open[name]


def cache_counters(tars: Iterable[CachedTars]) -> CacheCounters:
    """What this process had of its cache through the tars of several sets; a read from an open tar is a hit as well."""
    different = list(dict.fromkeys(tars))
    (counters,) = {each.cache: each.cache.counters() for each in different}.values()  # one cache, so one item
    return replace(counters, hits=counters.hits + sum(each.reused for each in different))


def open_cache(
    root: str, folder: str | None, max_bytes: int, patience: Callable[[], float] = lambda: PATIENCE_S
) -> ShardCache | None:
    """The cache that a root by URL is read through; None for a root by path. Args: as `ShardCache`.

    Raises:
        UserError: a URL without a folder for the cache.
        HostError: a folder that can't be used.
    """
    if not is_remote(root):
        return None
    if folder is None:
        raise UserError(f"data.cache_dir: not set, and {root} is read through a cache; name a folder on a local disk")
    return ShardCache(Path(folder), max_bytes, patience)


class OpenedSet(NamedTuple):
    """A shard set, and its tars, wherever they are."""

    shard_set: ShardSet
    tars: Tars


class UnusableSetError(TransientError, ShardSetError):
    """A set can't be opened at all, or not beside another, which every rank meets alike."""


@contextmanager
def opening() -> Iterator[None]:
    """Raise UnusableSetError for a ShardSetError met while sets are opened."""
    try:
        yield
    except ShardSetError as error:
        raise UnusableSetError(str(error)) from error


@opening()
def open_set(root: str, quality: Quality, cache: ShardCache | None) -> OpenedSet:
    """Open `<root>/<quality>` and its tars; `root` is a path or a URL.

    The `folder` of a remote set is the cache's. Its index is read through the cache, its manifest is fetched anew.

    Args:
        root: `data.root`.
        quality: Of the set.
        cache: Of this node; only a URL needs one.

    Raises:
        UnusableSetError: as `open_shard_set`.
        StoreError: the store refuses the set, or is away for too long.
        UserError: a tar is larger than the cache.
        HostError: the cache can't be used.
    """
    if not is_remote(root):
        local = open_shard_set(Path(root), quality)
        return OpenedSet(local, LocalTars(local))
    assert cache is not None, "a URL is read through a cache"
    root = root.rstrip("/")
    url = f"{root}/{quality_name(quality)}"
    try:
        text = patiently(f"{url}/{MANIFEST_NAME}", lambda: read_whole(f"{url}/{MANIFEST_NAME}"), cache)
    except MissingError as error:
        there = _there(root)
        raise ShardSetError(f"{root}: holds no set of quality {quality}; {there} ({error.__cause__})") from None
    manifest = Manifest.parse(text, url)
    for name, tar in manifest.tars.items():
        cache.require_room(name, tar.bytes)
    try:
        with explaining(url):
            sizes = list_sizes(url)
    except (ShardSetError, StoreError):
        sizes = {}  # the manifest could be read: what can't be listed can be read as well, or is named then
    for name, tar in manifest.tars.items() if INDEX_NAME in sizes else ():  # else it doesn't list them
        if (size := sizes.get(name)) != tar.bytes:
            found = "missing" if size is None else f"{size} bytes"
            raise ShardSetError(f"{url}/{name}: {found} where the manifest lists {tar.bytes}; upload the set again")
    index_url = f"{url}/{INDEX_NAME}"
    index = RemoteFile(index_url, patiently(index_url, lambda: size_of(index_url), cache), manifest.index_sha256)
    columns = read_index(read_cached(index, cache), index_url, manifest.tars)
    shard_set = ShardSet(cache.folder, manifest, columns, url)
    return OpenedSet(shard_set, CachedTars(url, manifest.tars, cache))


def _there(root: str) -> str:
    files, path = fsspec.core.url_to_fs(root)
    try:
        with explaining(root):
            found = files.glob(f"{path}/*/{MANIFEST_NAME}")
    except (ShardSetError, StoreError):  # listing may be forbidden; what is missing is the news
        return "what it has can't be listed"
    finally:
        files.invalidate_cache()
    return f"it has {', '.join(sorted(Path(name).parent.name for name in found)) or 'none at all'}"
