"""Nodes call in, as plain processes of this host; who doesn't is named on all of them."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import REPOSITORY
from tests.mlflow_server import free_port

Node = subprocess.Popen[str]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def nodes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(nodes: ExitStack, name: str, port: int, *where: str, seconds: float = 20, job: str = "7-0-0") -> Node:
    words = ["--job", job, "--port", str(port), "--seconds", str(seconds), "--node", name, *where]
    command = [sys.executable, str(REPOSITORY / "launch" / "roll_call.py"), *words]
    process = nodes.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    nodes.callback(process.kill)
    return process


def ended(process: Node) -> tuple[int, str]:
    said = process.communicate(timeout=300)[1]
    return process.returncode, said


HEAD = ("--expect", "n1", "n2", "n3")


@pytest.mark.parametrize("head_comes_last", [False, True])
def test_all_go_on_when_all_are_there(nodes: ExitStack, port: int, head_comes_last: bool) -> None:
    order = [("n1", HEAD), ("n2", ("--at", "127.0.0.1")), ("n3", ("--at", "localhost"))]
    calls = [start(nodes, name, port, *where) for name, where in (reversed(order) if head_comes_last else order)]
    assert [ended(call) for call in calls] == [(0, "")] * 3
    socket.create_server(("", port)).close()  # torchrun takes the port next


def test_a_node_that_never_comes_is_named_on_all_others(nodes: ExitStack, port: int) -> None:
    head = start(nodes, "n1", port, *HEAD, seconds=4)
    other = start(nodes, "n2", port, "--at", "127.0.0.1", seconds=60)  # which hears of it from the head
    absence = "node n3 didn't come within {} s; see what became of it above, or raise FDTRAIN_JOIN_SECONDS\n"
    assert ended(head) == (1, f"launch/torchrun.sh: error: {absence.format(4)}")
    assert ended(other) == (1, f"launch/torchrun.sh: error: node n2: {absence.format(60)}")


def test_a_node_that_left_again_is_absent_and_strangers_count_for_nobody(nodes: ExitStack, port: int) -> None:
    head = start(nodes, "n1", port, *HEAD, seconds=3)
    for greeting in (b"7-0-0 n2\n", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"7-0-0 n9\n", b""):
        with connected(port) as stranger:
            stranger.sendall(greeting)
    code, said = ended(head)
    assert code == 1
    assert "error: node n2, n3 didn't come within 3 s" in said


def connected(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=120)
        except ConnectionRefusedError:
            pass


def test_a_head_that_never_comes_or_leaves_is_named(nodes: ExitStack, port: int) -> None:
    lonely = start(nodes, "n2", port, "--at", "127.0.0.1", seconds=1)
    code, said = ended(lonely)
    assert code == 1
    assert f"error: node n2: 127.0.0.1:{port}, where the nodes meet, didn't answer within 1 s" in said
    with socket.create_server(("127.0.0.1", port)) as server:
        left = start(nodes, "n2", port, "--at", "127.0.0.1")
        server.accept()[0].close()
    assert "left while others were waited for" in ended(left)[1]


def test_a_port_of_another_is_refused(nodes: ExitStack, port: int) -> None:
    head = start(nodes, "n1", port, *HEAD, seconds=30)
    stray = start(nodes, "n2", port, "--at", "127.0.0.1", job="8-0-0")
    assert "at 127.0.0.1:" in (said := ended(stray)[1])
    assert "another job meets (7-0-0); set FDTRAIN_PORT to another" in said
    second = start(nodes, "n1", port, *HEAD, job="8-0-0")
    assert f"port {port} of n1 can't be listened on (Address already in use); set FDTRAIN_PORT" in ended(second)[1]
    head.kill()
