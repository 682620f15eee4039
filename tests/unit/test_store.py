"""A store that is away for a while, refuses or breaks off: a web server with byte ranges and faults on demand."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets_shards.schema import ShardSetError, open_shard_set
from fdtrain.cli import main
from fdtrain.data.cache import FetchCancelledError, ShardCache
from fdtrain.data.intake import Intake
from fdtrain.data.loader import load_batches
from fdtrain.data.plan import MicroBatch
from fdtrain.data.reader import ShardReader
from fdtrain.data.remote import open_set
from fdtrain.data.store import MissingError, RemoteFile, StoreError
from tests.conftest import REPOSITORY, small_training
from tests.unit.test_cache import until

pytest.importorskip("aiohttp", reason="aiohttp, fsspec's HTTP client, is not installed: pip install 'fdtrain[s3]'")

BLOCK = 1000
CONTENT = np.random.default_rng(0).bytes(20 * BLOCK + 7)


class Store(ThreadingHTTPServer):
    """Serves a folder; `fault` is what it does with requests for names that hold `about`, from `good` answers on."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fault: HTTPStatus | str | None = None
        self.about = ""
        self.good = 0
        self.gets: list[int] = []
        """First bytes of the ranges that were answered."""
        self.refused = 0
        self.damages = 0
        """First blocks that still come with a wrong bit."""


class _Handler(BaseHTTPRequestHandler):
    server: Store

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        store, name = self.server, self.path.lstrip("/")
        if store.fault is not None and store.about in name:
            if store.good <= 0:
                store.refused += 1
                if isinstance(store.fault, HTTPStatus):
                    self.send_error(store.fault)
                else:
                    self.close_connection = True
                return
            store.good -= body
        if not (store.folder / name).is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content = (store.folder / name).read_bytes()
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        first, last = int(asked[0]), int(asked[1] or len(content) - 1)
        if body:
            store.gets.append(first)
        part = content[first : last + 1]
        if body and first == 0 and store.damages:
            store.damages -= 1
            part = bytes([part[0] ^ 1]) + part[1:]
        self.send_response(HTTPStatus.PARTIAL_CONTENT if "Range" in self.headers else HTTPStatus.OK)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def serving(folder: Path) -> Iterator[Store]:
    with Store(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """With one file, in several blocks."""
    monkeypatch.setattr("fdtrain.data.store.BLOCK_BYTES", BLOCK)
    (tmp_path / "store").mkdir()
    (tmp_path / "store/one.tar").write_bytes(CONTENT)
    yield from serving(tmp_path / "store")


@pytest.fixture
def shards(shard_root: Path) -> Iterator[Store]:
    """With the sets of `shard_root`."""
    yield from serving(shard_root)


class Pauses:
    """A clock that only pauses move on, by as long as they should take; then the store may come back."""

    def __init__(self, cache: ShardCache, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.taken: list[float] = []
        self.back_at = float("inf")
        self._store = store
        monkeypatch.setattr(cache, "pause", self._pause)
        monkeypatch.setattr("fdtrain.data.store.monotonic", lambda: self.now)

    def _pause(self, seconds: float, cancelled: threading.Event | None) -> None:
        self.taken.append(seconds)
        self.now += seconds
        if self.now >= self.back_at:
            self._store.fault = None


def one(store: Store) -> RemoteFile:
    return RemoteFile(f"{store.url}/one.tar", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def content_of(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as copy:
        copy.seek(0)
        return copy.read()


@pytest.mark.parametrize("fault", [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS, "broken off"])
def test_a_download_goes_on_at_its_last_good_block_after_an_outage(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: HTTPStatus | str,
) -> None:
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    pauses = Pauses(cache, store, monkeypatch)
    pauses.back_at = 120.0
    store.fault, store.about, store.good = fault, "one.tar", 12
    assert content_of(one(store).open_in(cache)) == CONTENT
    assert 120 <= sum(pauses.taken) < 160
    assert all(first < second for first, second in zip(pauses.taken[:5], pauses.taken[1:5], strict=False))
    assert max(pauses.taken) <= 30
    again = len(store.gets) - len(set(store.gets))
    assert again < 4, "only blocks that were under way when it broke are asked for again"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"warning: {store.url}/one.tar: can't be read for now (" in said
    assert "FileNotFound" not in said


@pytest.mark.parametrize("damages", [1, 2])
def test_what_came_damaged_is_fetched_whole_once_more(store: Store, tmp_path: Path, damages: int) -> None:
    store.damages = damages
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    if damages == 1:
        assert content_of(one(store).open_in(cache)) == CONTENT
    else:
        with pytest.raises(ShardSetError, match=r"one\.tar: .* with another SHA-256, twice"):
            one(store).open_in(cache)
    assert store.gets.count(0) == 2
    assert len(store.gets) == 42


@pytest.mark.parametrize("fault", [HTTPStatus.INTERNAL_SERVER_ERROR, "broken off"])
def test_patience_ends(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: HTTPStatus | str) -> None:
    """Also of a second thread, which waited for the first: not after as long again."""
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    pauses = Pauses(cache, store, monkeypatch)
    store.fault = fault
    with ThreadPoolExecutor(2) as pool:
        for fetching in [pool.submit(one(store).open_in, cache) for _ in range(2)]:
            with pytest.raises(StoreError, match=r"one\.tar: can't be read \(.*; check the store and the network"):
                fetching.result(timeout=60)
    assert 240 < sum(pauses.taken) <= 300
    assert not list((tmp_path / "cache").glob(".*.part"))


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (HTTPStatus.NOT_FOUND, MissingError, "missing in the store"),
        (HTTPStatus.FORBIDDEN, StoreError, "access denied"),
        (HTTPStatus.UNAUTHORIZED, StoreError, "access denied"),
    ],
)
def test_what_the_store_has_decided_is_said_at_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: HTTPStatus, kind: type[Exception], words: str
) -> None:
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    pauses = Pauses(cache, store, monkeypatch)
    store.fault, store.good = fault, 5
    with pytest.raises(kind, match=rf"^{store.url}/one\.tar: {words} \("):
        one(store).open_in(cache)
    assert pauses.taken == []


def test_a_pause_ends_when_nobody_waits_any_more(store: Store, tmp_path: Path) -> None:
    store.fault = HTTPStatus.SERVICE_UNAVAILABLE
    cancelled = threading.Event()
    patience = 300.0
    with ThreadPoolExecutor(1) as pool:
        cache = ShardCache(tmp_path / "cache", 1 << 20, lambda: patience)
        fetching = pool.submit(one(store).open_in, cache, cancelled)
        until(lambda: store.refused)
        cancelled.set()
        with pytest.raises(FetchCancelledError):
            fetching.result(timeout=20)
        fetching = pool.submit(one(store).open_in, cache)
        before = store.refused
        until(lambda: store.refused > before)
        patience = 0.0  # as of a run that was told to stop
        with pytest.raises(StoreError, match="can't be read"):
            fetching.result(timeout=20)


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_an_outage_makes_no_sample_bad(
    shards: Store, shard_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    remote, tars = open_set(shards.url, 77, cache)
    pauses = Pauses(cache, shards, monkeypatch)
    shards.fault, shards.about = HTTPStatus.SERVICE_UNAVAILABLE, ".tar"
    rows = np.arange(0, 168, 5)

    def images(reader: ShardReader, intake: Intake) -> torch.Tensor:
        parts = [MicroBatch.of(rows[at : at + 8]) for at in range(0, len(rows), 8)]
        options = {"batch_size": 8, "device": torch.device("cpu"), "threads": 2, "prefetch": 2}
        batches = load_batches(loader, reader, parts, **options, intake=intake)  # type: ignore[arg-type]
        return torch.cat([batch.images for batch in batches])

    intake = Intake(lambda positions, attempt: positions, limit=1000)
    with ShardReader(remote, tars=[tars]) as reader:
        with pytest.raises(StoreError, match=r"\.tar: can't be read"):
            images(reader, intake)
        cache.away_since.clear()
        pauses.back_at = pauses.now + 60
        shards.fault = HTTPStatus.SERVICE_UNAVAILABLE
        found = images(reader, intake)
    assert intake.bad_samples() == {}
    with ShardReader(open_shard_set(shard_root, 77)) as local:
        assert torch.equal(found, images(local, Intake()))


def test_commands_say_it_in_one_line(
    shards: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards.fault = HTTPStatus.FORBIDDEN
    data = ["--data.root", shards.url, "--data.cache_dir", f"{tmp_path}/cache"]
    assert main(["evaluate", "--model", "x", "--out", f"{tmp_path}/x.json", *data]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"evaluate: error: {shards.url}/q77/manifest.json: access denied" in said
    shards.fault = HTTPStatus.SERVICE_UNAVAILABLE
    monkeypatch.setattr("fdtrain.data.remote.PATIENCE_S", 0.5)
    assert main(["evaluate", "--model", "x", "--out", f"{tmp_path}/x.json", *data]) == 1
    assert "manifest.json: can't be read (" in capsys.readouterr().err


def test_a_run_that_waits_for_its_store_still_stops(shards: Store, tmp_path: Path) -> None:
    shards.fault, shards.about = HTTPStatus.SERVICE_UNAVAILABLE, "val-"
    run = tmp_path / "run"
    words = small_training(shards.url, run, data__cache_dir=tmp_path / "cache")  # type: ignore[arg-type]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-m", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        until(lambda: shards.refused or process.poll() is not None, 120)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=20)[0]
    assert process.returncode == 0, output
    status = json.loads((run / "status.json").read_bytes())
    assert (status["state"], status["reason"], status["step"]) == ("preempted", "SIGTERM", 4), output
