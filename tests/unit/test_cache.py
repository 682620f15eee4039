"""The cache of a node: bounded, shared by processes, and never showing half a file."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_shards.schema import ShardSetError, file_sha256, open_shard_set
from fdtrain.cli import main
from fdtrain.config import HostError, UserError
from fdtrain.data import cache as cache_module
from fdtrain.data.cache import FetchCancelledError, ShardCache, entry_name
from fdtrain.data.remote import CachedTars, cache_counters, is_remote, open_cache, open_set
from fdtrain.data.store import RemoteFile
from fdtrain.data.tars import LocalTars
from tests.conftest import REPOSITORY

KIB = 1024

SLOW_READER = """
import os, sys, time
from pathlib import Path
from fdtrain.data.cache import ShardCache

folder, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def write(descriptor):
    with log.open("a") as file:
        file.write("fetched\\n")
    os.write(descriptor, b"x" * 512)
    time.sleep(seconds)
    os.write(descriptor, b"x" * 512)

descriptor = ShardCache(folder, 4096).open("one", "one.tar", 1024, write)
assert os.pread(descriptor, 2048, 0) == b"x" * 1024
print("open", flush=True)
sys.stdin.read()
assert os.pread(descriptor, 2048, 0) == b"x" * 1024
print("still there", flush=True)
"""


FULL_DISK = """
import sys
from pathlib import Path
from fdtrain.config import HostError
from fdtrain.data.cache import ShardCache

folder, size = Path(sys.argv[1]), int(sys.argv[2])

def write(descriptor):
    print("downloaded")

try:
    ShardCache(folder, 1 << 40).open("one", "one.tar", size, write)
except HostError as error:
    print(error)
print([path.name for path in folder.iterdir()])
"""


def filling(content: bytes) -> Callable[[int], None]:
    def write(descriptor: int) -> None:
        os.write(descriptor, content)

    return write


def take(cache: ShardCache, name: str, size: int) -> None:
    """Ask for a file of which every byte is the first letter of its name, and look at it."""
    content = name[:1].encode() * size
    descriptor = cache.open(name, name, size, filling(content))
    try:
        assert os.pread(descriptor, size + 1, 0) == content
    finally:
        os.close(descriptor)


def whole(folder: Path) -> set[str]:
    return {path.name[33:] for path in folder.iterdir() if not path.name.startswith(".")}


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


def start_reader(folder: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_READER, str(folder), str(log), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def test_a_file_is_fetched_once_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3 * KIB)
    for name in ("a", "b", "c", "a", "d"):
        take(cache, name, KIB)
    assert whole(cache.folder) == {"a", "c", "d"}
    counters = cache.counters()
    assert (counters.hits, counters.misses, counters.evictions, counters.fetched_bytes) == (1, 4, 1, 4 * KIB)
    assert counters.waited_s > 0
    take(cache, "e", 2 * KIB)  # takes the room of two, and no more
    assert whole(cache.folder) == {"d", "e"}


@settings(max_examples=30, deadline=None)
@given(
    wanted=st.lists(st.sampled_from(list("abcdefgh")), max_size=20),
    sizes=st.lists(st.integers(1, 5), min_size=8, max_size=8),
)
def test_what_is_kept_is_what_was_used_last(wanted: list[str], sizes: list[int]) -> None:
    size_of = dict(zip("abcdefgh", sizes, strict=True))
    kept: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = ShardCache(Path(folder), 8)
        for name in wanted:
            if name in kept:
                kept.remove(name)
            while sum(size_of[other] for other in kept) + size_of[name] > 8:
                kept.pop(0)
            kept.append(name)
            take(cache, name, size_of[name])
            assert whole(cache.folder) == set(kept)
            assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 8
        assert not parts(cache.folder)


def test_another_content_is_another_file(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, KIB)
    for content in (b"old", b"new"):
        descriptor = cache.open(f"url {content!r}", "one.tar", 3, filling(content))
        assert os.pread(descriptor, 9, 0) == content
        os.close(descriptor)
    assert entry_name("url", "../a b/c").endswith("-.._a_b_c")


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, KIB)

    def fail(descriptor: int) -> None:
        os.write(descriptor, b"half")
        raise ShardSetError("the store is gone")

    with pytest.raises(ShardSetError, match="gone"):
        cache.open("a", "a", 8, fail)
    with pytest.raises(ValueError, match="9 bytes were written instead of 8"):
        cache.open("a", "a", 8, filling(b"a" * 9))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    take(cache, "a", 8)


def test_a_full_disk_is_found_before_the_download(tmp_path: Path) -> None:
    small_disk = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*small_disk, "true"], capture_output=True).returncode:
        pytest.skip("no disk of 1 MB can be had here: unshare -rm isn't allowed to mount one")
    said = subprocess.run(
        [*small_disk, sys.executable, "-c", FULL_DISK, str(tmp_path), str(2 << 20)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    ).stdout
    remedy = "lower data.cache_bytes or choose another disk"
    assert said.splitlines() == [f"data.cache_dir: {tmp_path}: No space left on device; {remedy}", "['.lock']"]


def test_a_disk_that_fills_meanwhile_is_not_taken_for_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where space can't be had in advance. The last block matters: a buffer would keep it until after the check."""
    (tmp_path / "one.tar").write_bytes(bytes(3000))
    really, reads = LocalFileSystem.cat_file, []

    def cat_file(self: LocalFileSystem, *args: object, **options: object) -> bytes:
        reads.append(args)
        return really(self, *args, **options)

    monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
    file = RemoteFile(f"file://{tmp_path}/one.tar", 3000, hashlib.sha256(bytes(3000)).hexdigest())
    full = os.open("/dev/full", os.O_RDWR)
    try:
        with pytest.raises(HostError, match=r"data\.cache_dir: .*: No space left on device; lower data\.cache_bytes"):
            file._fetch(ShardCache(tmp_path / "cache", KIB), None, full)
    finally:
        os.close(full)
    assert len(reads) == 1


def test_an_interrupt_after_the_rename_spares_the_next_writers_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path, KIB)
    really = Path.rename

    def rename(self: Path, target: Path) -> None:
        really(self, target)
        self.write_bytes(b"the next writer's")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        take(cache, "a", 100)
    assert whole(tmp_path) == {"a"}
    (part,) = parts(tmp_path)
    assert part.read_bytes() == b"the next writer's"


def test_files_of_others_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    mine = [tmp_path / "thesis.tex", tmp_path / ".profile", tmp_path / ".big.part"]
    for path in mine:
        path.write_bytes(bytes(10 * KIB))
        os.utime(path, (0, 0))
    cache = ShardCache(tmp_path, 2 * KIB)
    for name in "abcd":
        take(cache, name, KIB)
    assert cache.counters().evictions == 2
    assert all(path.stat().st_size == 10 * KIB for path in mine)


def test_a_file_that_someone_cut_is_fetched_again(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, KIB)
    take(cache, "a", 100)
    os.truncate(tmp_path / entry_name("a", "a"), 50)
    take(cache, "a", 100)
    assert cache.counters().misses == 2


def test_writers_together_stay_within_the_bound(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2 * KIB)
    most, at_once, now = 0, 0, 0
    lock = threading.Lock()

    def write(descriptor: int) -> None:
        nonlocal most, at_once, now
        with lock:
            now += 1
            at_once = max(at_once, now)
        with cache._locked():
            most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
        time.sleep(0.03)
        os.write(descriptor, bytes(KIB))
        with lock:
            now -= 1

    with ThreadPoolExecutor(6) as pool:
        for descriptor in pool.map(lambda number: cache.open(f"{number % 8}", "x", KIB, write), range(24)):
            os.close(descriptor)
    assert most <= 2 * KIB
    assert at_once == 2  # neither more than there is room for, nor one after the other


def test_two_processes_fetch_a_file_once_and_eviction_spares_who_reads(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    readers = [start_reader(folder, log, 0.4) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout.readline() == "open\n"
        assert log.read_text() == "fetched\n"
        cache = ShardCache(folder, 4096)
        take(cache, "b", 4096)  # needs all the room there is
        assert whole(folder) == {"b"}
        for reader in readers:
            assert reader.communicate("", timeout=120)[0] == "still there\n"
            assert reader.returncode == 0
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()


def test_a_killed_writer_leaves_nothing_visible_and_the_next_goes_on(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    for next_one in ("the same file", "another file", "a new process"):
        reader = start_reader(folder, log, 60)
        until(lambda: parts(folder) and parts(folder)[0].stat().st_size == 1024)
        assert not whole(folder)
        reader.send_signal(signal.SIGKILL)
        reader.communicate()
        assert len(parts(folder)) == 1
        cache = ShardCache(folder, 4096)
        if next_one == "a new process":
            assert not parts(folder)
        elif next_one == "another file":
            take(cache, "b", 4096)  # the dead one's room is free again
        else:
            take(cache, "one", 1024)
        assert not parts(folder)
        for path in folder.iterdir():
            path.unlink()


def test_what_dead_writers_left_counts_for_nobody(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, KIB)
    left = [tmp_path / f".{entry_name(name, name)}.part" for name in "ab"]
    for path in left:
        path.write_bytes(bytes(KIB))
    with ThreadPoolExecutor(2) as pool:
        with cache._locked():  # both have taken over a part file before either looks for room
            taking = [pool.submit(take, cache, name, KIB) for name in "ab"]
            until(lambda: all(path.stat().st_size == 0 for path in left))
        try:
            for each in taking:
                each.result(timeout=120)
        finally:
            cache.close()
    assert len(whole(tmp_path)) == 1


def test_a_part_file_swept_before_it_is_locked_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path, KIB)
    really = cache_module._try_lock
    sweeps = [tmp_path / f".{entry_name('a', 'a')}.part"]

    def sweep_first(descriptor: int) -> bool:
        if sweeps:
            sweeps.pop().unlink()
        return really(descriptor)

    monkeypatch.setattr(cache_module, "_try_lock", sweep_first)
    take(cache, "a", 100)
    assert whole(tmp_path) == {"a"}
    assert not sweeps


def test_closing_ends_the_wait_for_another(tmp_path: Path) -> None:
    first, second = ShardCache(tmp_path, KIB), ShardCache(tmp_path, KIB)
    begun, finish = threading.Event(), threading.Event()

    def write(descriptor: int) -> None:
        begun.set()
        assert finish.wait(120)
        os.write(descriptor, b"aaaa")

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(first.open, "a", "a", 4, write)
        assert begun.wait(120)
        waiting = pool.submit(second.open, "a", "a", 4, write)
        second.close()
        with pytest.raises(FetchCancelledError):
            waiting.result(timeout=120)
        finish.set()
        os.close(writing.result(timeout=120))
    assert whole(tmp_path) == {"a"}


def test_mistakes_name_the_setting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.cache_bytes: 10 is less than the 11 bytes of a\.tar alone"):
        ShardCache(tmp_path / "cache", 10).open("a", "a.tar", 11, filling(b""))
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"data.cache_dir: .*file can't be used"):
        ShardCache(tmp_path / "file", 10)
    with pytest.raises(UserError, match=r"data.cache_dir: not set, and s3://bucket/root"):
        open_cache("s3://bucket/root", None, 1)
    assert open_cache("/a/path", None, 1) is None


def test_a_fault_of_one_host_is_told_by_its_rank(
    shard_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    root = f"file://{shard_root}"
    command = ["evaluate", "--model", "x", "--out", f"{tmp_path}/x.json", "--data.root", root, "--data.cache_dir"]
    fault = f"data.cache_dir: {tmp_path}/file can't be used (File exists); choose another folder\n"
    assert main([*command, f"{tmp_path}/file"]) == 1
    assert capsys.readouterr().err == f"python -m fdtrain evaluate: error: {fault}"
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main([*command, f"{tmp_path}/file"]) == 1
        place = f"rank {rank} on {socket.gethostname()}"
        assert capsys.readouterr().err == f"python -m fdtrain evaluate: error: {place}: {fault}"
    too_small = [*command, f"{tmp_path}/cache", "--data.cache_bytes", "10"]
    monkeypatch.setattr(
        "fdtrain.cli.RANK_0_FIRST_S", 0.1
    )  # in which torchrun ends the others, where rank 0 meets it too
    for rank, place in (("0", ""), ("1", f"rank 1 on {socket.gethostname()}: ")):
        monkeypatch.setenv("RANK", rank)
        assert main(too_small) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"python -m fdtrain evaluate: error: {place}data.cache_bytes: 10 is less than")
        assert said.count("\n") == 1


def test_a_set_by_url_is_the_set_by_path(shard_root: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1 << 20)
    local, tars = open_set(str(shard_root), 77, None)
    remote, cached = open_set(f"file://{shard_root}/", 77, cache)
    assert is_remote("s3://bucket")
    assert not is_remote(str(shard_root))
    assert remote.index.read().equals(local.index.read())
    assert remote.manifest.digest == local.manifest.digest
    with tars, cached:
        assert isinstance(tars, LocalTars)
        assert isinstance(cached, CachedTars)
        cached.prepare(remote.manifest.tars)
        for row in remote.index.read().to_pylist():
            content = cached.read(row["shard"], row["offset"], row["size"])
            assert content == tars.read(row["shard"], row["offset"], row["size"])
            assert content.startswith(b"\xff\xd8\xff")
        counters = cache_counters([cached])
    assert counters.misses >= 4  # three tars and the index, whoever asked first
    index_bytes = (local.folder / "index.parquet").stat().st_size
    assert counters.fetched_bytes == sum(tar.bytes for tar in local.manifest.tars.values()) + index_bytes
    assert counters.hits >= remote.index.num_rows - 3


def test_an_evicted_tar_is_let_go(shard_root: Path, tmp_path: Path) -> None:
    manifest = open_shard_set(shard_root, 77).manifest
    sizes = {name: tar.bytes for name, tar in manifest.tars.items()}
    cache = ShardCache(tmp_path, max(sizes.values()) + 1)
    with CachedTars(f"file://{shard_root}/q77", manifest.tars, cache) as tars:
        for _ in range(2):
            for name in sizes:
                assert tars.read(name, 0, 10) == (shard_root / "q77" / name).read_bytes()[:10]
        opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]  # noqa: PTH115
        assert not [path for path in opened if path.startswith(f"{tmp_path}/") and path.endswith("(deleted)")]
    assert cache.counters().evictions >= 3


def test_cancelling_gives_up_downloads_and_later_reads_begin_anew(
    shard_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store that takes a second for a block, whole tars of which would take many."""
    monkeypatch.setattr("fdtrain.data.store.BLOCK_BYTES", 5_000)
    manifest = open_shard_set(shard_root, 77).manifest
    really, slowly, asked = LocalFileSystem.cat_file, threading.Event(), []
    slowly.set()

    def cat_file(self: LocalFileSystem, path: str, **options: object) -> bytes:
        asked.append(path)
        if slowly.is_set():
            time.sleep(0.3)
        return really(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
    cache = ShardCache(tmp_path, 1 << 20)
    names = list(manifest.tars)
    with CachedTars(f"file://{shard_root}/q77", manifest.tars, cache) as tars, ThreadPoolExecutor(1) as pool:
        tars.prepare(names)  # two of the three are fetched at a time
        reading = pool.submit(tars.read, names[0], 0, 10)  # waits for the first of these
        until(lambda: len(parts(tmp_path)) == 2)
        tars.cancel()
        with pytest.raises(FetchCancelledError):
            reading.result(timeout=1)
        until(lambda: not parts(tmp_path), seconds=2)
        assert not whole(tmp_path)
        assert not [path for path in asked if path.endswith(names[2])]  # was waiting, and was dropped
        slowly.clear()
        tars.prepare(names[1:])
        for name in names:
            assert tars.read(name, 0, 1 << 20) == (shard_root / "q77" / name).read_bytes()
    assert whole(tmp_path) == set(names)


def test_a_changed_or_missing_tar_is_named(shard_root: Path, tmp_path: Path) -> None:
    shards = open_shard_set(shard_root, 77)
    store = tmp_path / "store"
    store.mkdir()
    tar = store / "train-000000.tar"
    content = (shards.folder / tar.name).read_bytes()
    entry = shards.manifest.tars[tar.name]
    file = RemoteFile(f"file://{tar}", entry.bytes, entry.sha256)
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    with pytest.raises(ShardSetError, match=r"train-000000\.tar: missing in the store .*; check data.root"):
        file.open_in(cache)
    tar.write_bytes(content + b"more")
    with pytest.raises(ShardSetError, match=rf"tar: {entry.bytes + 4} bytes where the manifest lists {entry.bytes}"):
        file.open_in(cache)
    tar.write_bytes(content[:-1] + b"x")
    with pytest.raises(ShardSetError, match=r"tar: .* with another SHA-256, twice"):
        file.open_in(cache)
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]
    tar.write_bytes(content)
    os.close(file.open_in(cache))
    assert file_sha256(cache.folder / entry_name(f"{file.url} {file.sha256}", tar.name)) == entry.sha256


def test_a_download_damaged_on_its_way_is_done_again(
    shard_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, entry = next(iter(open_shard_set(shard_root, 77).manifest.tars.items()))
    really = LocalFileSystem.cat_file
    damages = [b"damaged"]

    def cat_file(self: LocalFileSystem, *args: object, **options: object) -> bytes:
        content = really(self, *args, **options)
        return damages.pop() + content[7:] if damages else content

    monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
    file = RemoteFile(f"file://{shard_root}/q77/{name}", entry.bytes, entry.sha256)
    descriptor = file.open_in(ShardCache(tmp_path, 1 << 20))
    assert not damages
    assert os.pread(descriptor, entry.bytes + 1, 0) == (shard_root / "q77" / name).read_bytes()
    os.close(descriptor)


def test_a_protocol_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=r"nosuch://a/q77/manifest\.json: Protocol not known: nosuch; data.root is"):
        open_set("nosuch://a", 77, ShardCache(tmp_path, KIB))


@pytest.mark.parametrize("flip", [1, 255])
def test_a_damaged_index_in_the_cache_is_fetched_again(shard_root: Path, tmp_path: Path, flip: int) -> None:
    """One byte of the copy differs, and its size is what it was."""
    cache = ShardCache(tmp_path, 10 << 20)
    intact = open_set(f"file://{shard_root}", 77, cache).shard_set.index
    (path,) = tmp_path.glob("*-index.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:500] + bytes([content[500] ^ flip]) + content[501:])
    again = open_set(f"file://{shard_root}", 77, cache).shard_set.index
    assert again.read().equals(intact.read())
    assert path.read_bytes() == content
    assert cache.counters().fetched_bytes == 2 * len(content)
