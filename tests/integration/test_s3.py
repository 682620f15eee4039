"""Shard sets in an S3 bucket or on a web server: real servers on loopback, and a line between that can be cut."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from datasets_shards.schema import ShardSet, ShardSetError, open_shard_set
from fdtrain.data.cache import FetchCancelledError, ShardCache
from fdtrain.data.remote import CachedTars, open_set
from fdtrain.data.store import RemoteFile, StoreError
from tests.conftest import REPOSITORY, run_python, small_training, torchrun

pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'fdtrain[s3]'")
pytest.importorskip("moto", reason="moto, the S3 server of these tests, is not installed: pip install 'fdtrain[dev]'")

import fsspec

READ_ALL = """
import sys, time
from pathlib import Path
from fdtrain.data.cache import ShardCache
from fdtrain.data.remote import cache_counters, open_set

cache = ShardCache(Path(sys.argv[1]), int(sys.argv[2]))
shards, tars = open_set(sys.argv[3], 77, cache)
with tars:
    for row in shards.index.read().to_pylist():
        assert tars.read(row["shard"], row["offset"], row["size"]).startswith(b"\\xff\\xd8\\xff"), row
    counters = cache_counters([tars])
print(shards.index.num_rows, counters.misses, counters.fetched_bytes)
"""

OPEN_ONE = """
import sys
from pathlib import Path
from fdtrain.data.cache import ShardCache
from fdtrain.data.store import RemoteFile

RemoteFile(sys.argv[2], int(sys.argv[3]), sys.argv[4]).open_in(ShardCache(Path(sys.argv[1]), 1 << 30))
"""


class Server:
    """moto's S3 in a process of its own; it logs every request."""

    def __init__(self, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        until(lambda: "Running on http://127.0.0.1:" in log.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, log.read_text()
        self.port = int(log.read_text().rpartition("Running on http://127.0.0.1:")[2].split()[0])

    def requests(self, words: str) -> int:
        """How many requests the log has that hold these words."""
        return sum(words in line for line in self.log.read_text().splitlines())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class Line:
    """A TCP line to the server: `rate` bytes/s are let through to the client, and `cut` ends it."""

    def __init__(self, port: int, rate: float, cut_after: int | None = None) -> None:
        self.target, self.rate, self.cut_after = port, rate, cut_after
        self.passed = 0
        self.cuts = 0
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # cut
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            self._sockets += [client, server]
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, down: bool) -> None:
        try:
            while block := source.recv(1 << 14):
                to.sendall(block)
                if down:
                    self.passed += len(block)
                    if self.cut_after is not None and self.passed > self.cut_after:
                        self.cut_after, self.cuts = None, self.cuts + 1
                        break
                    time.sleep(len(block) / self.rate)
        except OSError:  # cut
            pass
        for each in (source, to):
            _end(each)

    def cut(self) -> None:
        """Refuse and end all connections."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in self._sockets:
            _end(each)


def _end(line: socket.socket) -> None:
    with suppress(OSError):  # was ended by the other side
        line.shutdown(socket.SHUT_RDWR)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def visible(folder: Path) -> list[str]:
    return sorted(path.name[33:] for path in folder.iterdir() if not path.name.startswith("."))


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("moto") / "log")
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _credentials(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    yield
    forget_clients()


def forget_clients() -> None:
    """fsspec keeps its clients, and a client the endpoint and the credentials that it began with."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def shards(shard_root: Path) -> ShardSet:
    return open_shard_set(shard_root, 77)


@pytest.fixture
def bucket(shard_root: Path, request: pytest.FixtureRequest) -> str:
    """A new bucket with the root in it; its URL."""
    name = f"b{hashlib.sha256(request.node.name.encode()).hexdigest()[:20]}"
    files = fsspec.filesystem("s3")
    files.mkdir(name)
    for path in (shard_root / "q77").iterdir():
        files.pipe(f"{name}/root/q77/{path.name}", path.read_bytes())
    return f"s3://{name}/root"


def put(url: str, content: bytes) -> RemoteFile:
    fsspec.filesystem("s3").pipe(url, content)
    return RemoteFile(url, len(content), hashlib.sha256(content).hexdigest())


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(0).bytes(count)


def test_every_image_by_url_is_the_one_on_the_disk(
    bucket: str, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fdtrain.data.store.BLOCK_BYTES", 10_000)  # every tar in several blocks
    remote, tars = open_set(bucket, 77, ShardCache(tmp_path, 1 << 20))
    assert remote.index.read().equals(shards.index.read())
    assert remote.manifest.digest == shards.manifest.digest
    with tars:
        for row in shards.index.read().to_pylist():
            with (shards.folder / row["shard"]).open("rb") as tar:
                assert tars.read(row["shard"], row["offset"], row["size"]) == os.pread(
                    tar.fileno(), row["size"], row["offset"]
                )


def test_two_processes_of_a_node_fetch_a_tar_once(
    bucket: str, server: Server, shards: ShardSet, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", READ_ALL, str(tmp_path / "cache"), str(1 << 20), bucket]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [rank.communicate(timeout=300)[0].split() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert [int(words[0]) for words in said] == [shards.index.num_rows] * 2
    for name in shards.manifest.tars:
        assert server.requests(f"GET /{bucket.removeprefix('s3://')}/q77/{name} ") == 1
    index_bytes = (shards.folder / "index.parquet").stat().st_size
    assert sum(int(words[2]) for words in said) == index_bytes + sum(tar.bytes for tar in shards.manifest.tars.values())


def test_a_small_cache_stays_small_while_others_read(bucket: str, shards: ShardSet, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    room = max(tar.bytes for tar in shards.manifest.tars.values()) + 20_000
    done = threading.Event()
    most = 0

    def watch() -> None:
        nonlocal most
        cache = ShardCache(folder, room)
        while not done.is_set():
            with cache._locked():
                most = max(most, sum(path.stat().st_size for path in folder.iterdir()))
            time.sleep(0.002)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", READ_ALL, str(folder), str(room), bucket]
        ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
        said = [rank.communicate(timeout=300)[0].split() for rank in ranks]
    finally:
        done.set()
        watching.join()
    assert [int(words[0]) for words in said] == [shards.index.num_rows] * 2
    assert 0 < most <= room
    assert len(visible(folder)) < 4


def test_killed_amid_a_download(bucket: str, server: Server, tmp_path: Path) -> None:
    file = put(f"{bucket}/big.tar", random_bytes(1 << 20))
    folder = tmp_path / "cache"
    line = Line(server.port, rate=200_000)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "AWS_ENDPOINT_URL": line.url}
    command = [sys.executable, "-c", OPEN_ONE, str(folder), file.url, str(file.bytes), file.sha256]
    process = subprocess.Popen(command, env=environment)
    until(lambda: line.passed > 100_000)
    process.kill()
    process.wait()
    line.cut()
    assert visible(folder) == []
    assert len(hidden(folder)) == 1
    cache = ShardCache(folder, 1 << 20)  # sweeps
    assert hidden(folder) == []
    descriptor = file.open_in(cache)
    assert hashlib.sha256(os.pread(descriptor, 2 << 20, 0)).hexdigest() == file.sha256
    os.close(descriptor)
    assert visible(folder) == ["big.tar"]


def test_a_line_that_breaks_is_tried_again(
    bucket: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(f"{bucket}/big.tar", random_bytes(1 << 20))
    line = Line(server.port, rate=1e9, cut_after=300_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.url)
    forget_clients()
    cache = ShardCache(tmp_path, 1 << 30)
    descriptor = file.open_in(cache)
    assert hashlib.sha256(os.pread(descriptor, 2 << 20, 0)).hexdigest() == file.sha256
    os.close(descriptor)
    assert line.cuts == 1
    line.cut()


def test_a_server_that_goes_away(bucket: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(f"{bucket}/big.tar", random_bytes(1 << 20))
    line = Line(server.port, rate=1_000_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.url)
    forget_clients()

    def cut() -> None:
        until(lambda: line.passed > 300_000)
        line.cut()

    cutting = threading.Thread(target=cut)
    cutting.start()
    with pytest.raises(StoreError, match=r"s3://.*/big\.tar: can't be read \(.*check the store and the network"):
        file.open_in(ShardCache(tmp_path, 1 << 30, lambda: 2.0))
    cutting.join()
    assert visible(tmp_path) == hidden(tmp_path) == []


def test_closing_gives_up_a_download(
    bucket: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(f"{bucket}/big.tar", random_bytes(1 << 20))
    line = Line(server.port, rate=100_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.url)
    monkeypatch.setattr("fdtrain.data.store.BLOCK_BYTES", 20_000)
    forget_clients()
    cache = ShardCache(tmp_path, 1 << 30)

    def close() -> None:
        until(lambda: line.passed > 50_000)
        cache.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(FetchCancelledError):
        file.open_in(cache)
    closing.join()
    assert line.passed < file.bytes
    assert visible(tmp_path) == hidden(tmp_path) == []
    line.cut()


def test_cancelling_gives_up_a_download_and_the_next_read_begins_anew(
    bucket: str, server: Server, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(server.port, rate=1e9)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.url)
    monkeypatch.setattr("fdtrain.data.store.BLOCK_BYTES", 10_000)
    forget_clients()
    name = "train-000000.tar"
    content = (shards.folder / name).read_bytes()
    _, tars = open_set(bucket, 77, ShardCache(tmp_path, 1 << 30))
    with tars, ThreadPoolExecutor(1) as pool:
        line.rate, line.passed = 50_000.0, 0
        reading = pool.submit(tars.read, name, 0, 10)
        until(lambda: line.passed > 20_000)
        tars.cancel()
        with pytest.raises(FetchCancelledError):
            reading.result(timeout=300)
        assert line.passed < len(content) - 50_000
        assert visible(tmp_path) == ["index.parquet"]
        assert hidden(tmp_path) == []
        line.rate = 1e9
        assert tars.read(name, 0, 2 * len(content)) == content
    line.cut()


class WebServer(SimpleHTTPRequestHandler):
    """Python's web server, which knows no byte ranges; it answers `listing` in place of a list of a folder's files."""

    listing = HTTPStatus.OK

    def list_directory(self, path: str | os.PathLike[str]) -> BytesIO | None:
        """Only where that is on."""
        if self.listing is HTTPStatus.OK:
            return super().list_directory(path)
        self.send_error(self.listing)
        return None

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def web(shard_root: Path) -> Iterator[str]:
    """The root by HTTP; its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(WebServer, directory=str(shard_root))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("listing", [HTTPStatus.OK, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.BAD_GATEWAY])
def test_a_web_server_need_not_list(
    web: str, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: HTTPStatus
) -> None:
    monkeypatch.setattr(WebServer, "listing", listing)
    remote, tars = open_set(web, 77, ShardCache(tmp_path, 1 << 20))
    assert remote.manifest.digest == shards.manifest.digest
    with tars:
        for name in shards.manifest.tars:
            assert tars.read(name, 0, 1 << 20) == (shards.folder / name).read_bytes()


def test_a_web_server_without_byte_ranges_is_told(
    web: str, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = shards.manifest.tars["val-000000.tar"]
    file = RemoteFile(f"{web}/q77/val-000000.tar", entry.bytes, entry.sha256)
    monkeypatch.setattr("fdtrain.data.store.BLOCK_BYTES", 10_000)
    message = rf"^{file.url}: the server ignores byte ranges \({entry.bytes} bytes came where 10000 were asked for\)"
    with pytest.raises(StoreError, match=message):
        file.open_in(ShardCache(tmp_path, 1 << 20))
    assert visible(tmp_path) == hidden(tmp_path) == []


def test_what_changed_in_the_bucket(bucket: str, shards: ShardSet, tmp_path: Path) -> None:
    name = "train-000000.tar"
    url = f"{bucket}/q77/{name}"
    content = (shards.folder / name).read_bytes()
    cache = ShardCache(tmp_path, 1 << 20)
    _, tars = open_set(bucket, 77, cache)
    assert isinstance(tars, CachedTars)
    files = fsspec.filesystem("s3", skip_instance_cache=True)  # what another client does, ours is not told
    with tars:
        files.pipe(url, content + b"more")
        with pytest.raises(ShardSetError, match=rf"{url}: {len(content) + 4} bytes where the manifest lists"):
            tars.read(name, 0, 8)
        files.pipe(url, content[:-1] + b"x")
        with pytest.raises(ShardSetError, match=rf"{url}: .* another SHA-256, twice; .* upload the set again"):
            tars.read(name, 0, 8)
        files.rm(url)
        with pytest.raises(ShardSetError, match=rf"{url}: missing in the store"):
            tars.read(name, 0, 8)
    assert visible(tmp_path) == ["index.parquet"]
    with pytest.raises(ShardSetError, match=rf"{url}: missing where the manifest lists {len(content)}"):
        open_set(bucket, 77, cache)
    files.pipe(f"{bucket}/q77/index.parquet", b"x" * 1000)
    files.pipe(url, content)
    with pytest.raises(ShardSetError, match=rf"{bucket}/q77/index.parquet: .* another SHA-256"):
        open_set(bucket, 77, ShardCache(tmp_path, 1 << 20))


def test_what_is_not_there(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path, 1 << 20)
    with pytest.raises(ShardSetError, match=rf"^{bucket}: holds no set of quality 15; it has q77"):
        open_set(bucket, 15, cache)
    with pytest.raises(ShardSetError, match=r"^s3://nosuchbucket/root: holds no set .*bucket does not exist"):
        open_set("s3://nosuchbucket/root", 77, cache)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget_clients()
    with pytest.raises(StoreError, match=r"no credentials .* AWS_ACCESS_KEY_ID .* AWS_PROFILE"):
        open_set(bucket, 77, cache)


def test_importing_the_training_imports_no_client() -> None:
    done = run_python("-c", "import sys, fdtrain.data.remote; print(sorted({'s3fs', 'botocore'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.long
def test_a_training_by_url_is_the_one_by_path(bucket: str, shard_root: Path, tmp_path: Path) -> None:
    """Mixed qualities on two ranks, from a bucket through one cache: the same weights; then evaluated from there."""
    for path in (shard_root / "raw").iterdir():
        put(f"{bucket}/raw/{path.name}", path.read_bytes())
    weights = []
    for name, root in (("local", str(shard_root)), ("remote", bucket)):
        data = {"data__mix": '{"77": 1, "raw": 1}', "data__cache_dir": tmp_path / "cache", "train__max_steps": 4}
        done = torchrun(2, *small_training(root, tmp_path / name, **data))  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr
        weights.append((tmp_path / name / "best/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    words = ("--model", tmp_path / "remote", "--data.root", bucket, "--out", tmp_path / "metrics.json")
    done = run_python("-m", "fdtrain", "evaluate", *words)
    assert "data.cache_dir: not set" in done.stderr
    done = run_python("-m", "fdtrain", "evaluate", *words, "--data.cache_dir", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    done = run_python(
        "-m",
        *small_training(bucket, tmp_path / "small", data__cache_dir=tmp_path / "c", data__cache_bytes=300_000),  # type: ignore[arg-type]
    )
    assert done.stderr.count("\n") == 1
    assert "data.cache_bytes: 300000 is less than the" in done.stderr
