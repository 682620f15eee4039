"""A real headless Chromium for tests of pages: what it makes of one, and whom it asks for what."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

QUIET = ("background-networking", "component-update", "sync", "default-apps", "extensions", "gpu", "quic", "breakpad")


def chromium() -> str:
    """Path of the browser; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on the PATH; .ci/run installs it")
    return found


@contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """The port of a proxy that answers nothing, and the first line of every request that reached it so far."""
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    connection.settimeout(10)
                    lines.append(connection.recv(4096).decode(errors="replace").partition("\r\n")[0])

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield server.getsockname()[1], lines
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def dump_dom(page: Path, profile: Path, port: int) -> str:
    """The page after its scripts ran, all its requests going to the proxy at `port`, as HTML.

    Args:
        page: A file.
        profile: An empty folder for the browser's own files.
        port: Of a proxy on loopback, such as `listening` gives.
    """
    command = [chromium(), "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={profile}"]
    command += [f"--disable-{what}" for what in QUIET]
    command += [f"--proxy-server=127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout
