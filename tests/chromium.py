"""A real headless Chromium for tests of pages: what it makes of one, and whom the page asks for what."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

QUIET = ("background-networking", "component-update", "sync", "default-apps", "extensions", "gpu", "quic", "breakpad")
BROWSER = "not an origin"
"""The initiator of the browser's own requests, such as those for updates."""


def chromium() -> str:
    """Path of the browser; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on the PATH; .ci/run installs it")
    return found


def visit(page: Path, folder: Path) -> tuple[str, list[str]]:
    """Load a page, without any network, and let its scripts run.

    Args:
        page: A file.
        folder: For the browser's own files; made.

    Returns:
        The page as HTML after that, and the addresses that it, and not the browser by itself, asked the network for.
    """
    folder.mkdir()
    log = folder / "net.json"
    command = [chromium(), "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--disable-{what}" for what in QUIET]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    starts = [event["params"] for event in json.loads(log.read_bytes())["events"] if "params" in event]
    asked = {start["url"]: None for start in starts if "url" in start and start.get("initiator", BROWSER) != BROWSER}
    return done.stdout, list(asked)
