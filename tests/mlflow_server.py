"""A real MLflow server for tests; import the fixture where it is used."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest


def free_port() -> int:
    """A TCP port of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(words: list[str], port: int, folder: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """`python -m mlflow WORDS...`, from when it takes connections at the port until the end of the context."""
    log = folder / f"log-{port}"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            stdout=file,
            stderr=file,
            cwd=folder,
            env=environment,
            start_new_session=True,  # it starts workers, which are to end with it
        )
        try:
            for _ in range(1500):
                assert server.poll() is None, log.read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            else:
                pytest.fail(f"nothing listens on port {port}: {log.read_text()}")
            yield
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(20)


@contextmanager
def mlflow_at(folder: Path, port: int) -> Iterator[str]:
    """URI of a tracking server on loopback, with database and artifacts in a folder that a later one goes on with."""
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "a")]
    # Its jobs would be four more processes, each of which imports MLflow.
    with serving(words, port, folder, os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of a real MLflow server on loopback, with a database and an artifact store of its own."""
    with mlflow_at(tmp_path_factory.mktemp("mlflow"), free_port()) as uri:
        yield uri


@contextmanager
def guarded(uri: str, login: str = "", missing: str = "") -> Iterator[str]:
    """Address of a gate before a server: it asks for a login `user:password`, and knows no paths with `missing`."""
    expected = f"Basic {base64.b64encode(login.encode()).decode()}"

    class Gate(BaseHTTPRequestHandler):
        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            status, content, kind = 401, b"who are you?", "text/plain"
            if missing and missing in self.path:
                status, content = 404, b"no such page"
            elif not login or self.headers.get("Authorization") == expected:
                kept = {key: self.headers[key] for key in ("Content-Type", "Accept") if key in self.headers}
                try:
                    answer = urlopen(Request(uri + self.path, body, kept, method=self.command))
                except HTTPError as error:
                    answer = error
                with answer:
                    status, content, kind = answer.status, answer.read(), answer.headers.get_content_type()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Gate) as gate:
        Thread(target=gate.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{gate.server_port}"
        gate.shutdown()
