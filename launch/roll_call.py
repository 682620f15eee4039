"""The nodes of a job call in before torchrun starts on them, so that one that never comes is named.

The first node listens where torchrun's own meeting will be; each other node connects, says who it is, and waits to hear
that all are there, or who isn't. Standard library alone: it runs before anything else on a node does.

    python3 launch/roll_call.py --job ID --port PORT --seconds N --node n1 --expect n1 n2 n3     # on the first
    python3 launch/roll_call.py --job ID --port PORT --seconds N --node n2 --at n1               # on the others
"""

import argparse
import os
import selectors
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress

PATIENCE_S = 30.0
"""How much longer than the first node itself the others wait to hear from it."""

GO, ABSENT, OTHER_JOB = "go", "absent", "other-job"


class RollCallError(Exception):
    """Some node is missing, or nothing can listen; the message is for people."""


def preside(job: str, port: int, seconds: float, node: str, expected: Iterable[str]) -> None:
    """On the first node: wait for all others, and let them know.

    Args:
        job: Id of this start; a node of another job that comes here is sent away.
        port: Where to listen.
        seconds: How long to wait.
        node: The name of this one.
        expected: The names of all.

    Raises:
        RollCallError: some didn't come in time, or the port is in use.
    """
    absent = {name for name in expected if name != node}
    here: dict[str, socket.socket] = {}
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        try:
            server = stack.enter_context(_listen(port))
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise RollCallError(
                f"port {port} of {node} can't be listened on ({reason}); set FDTRAIN_PORT to another"
            ) from None
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(server, selectors.EVENT_READ)
        while absent and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.data:  # it said who it is, and has nothing more to say but goodbye
                    selector.unregister(key.fileobj)
                    if here.get(key.data) is key.fileobj:
                        del here[key.data]
                        absent.add(key.data)
                elif key.fileobj is server:
                    connection = stack.enter_context(server.accept()[0])
                    connection.settimeout(5)
                    selector.register(connection, selectors.EVENT_READ)
                else:
                    connection = selector.unregister(key.fileobj).fileobj  # type: ignore[assignment]
                    their_job, _, name = _hear(connection).partition(" ")
                    if name and their_job != job:
                        _say(connection, f"{OTHER_JOB} {job}")
                    elif name in absent or name in here:
                        absent.discard(name)
                        here[name] = connection
                        selector.register(connection, selectors.EVENT_READ, name)
        names = ", ".join(sorted(absent))
        for connection in here.values():
            _say(connection, f"{ABSENT} {names}" if absent else GO)
    if absent:
        raise RollCallError(_absence(names, seconds))


def attend(job: str, port: int, seconds: float, node: str, first: str) -> None:
    """On another node: tell the first one, and wait for its word.

    Args:
        job: As for `preside`.
        port: Likewise.
        seconds: How long to look for the first node.
        node: The name of this one.
        first: The name or address of the first.

    Raises:
        RollCallError: the first node can't be reached, is another job's, left, or says that some didn't come.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection((first, port), timeout=5)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise RollCallError(
                    f"node {node}: {first}:{port}, where the nodes meet, didn't answer within {seconds:g} s "
                    f"({error.strerror or error}); see what became of that node above, or raise FDTRAIN_JOIN_SECONDS"
                ) from None
            time.sleep(0.2)
    with connection:
        connection.settimeout(seconds + PATIENCE_S)
        _say(connection, f"{job} {node}")
        word, _, rest = _hear(connection).partition(" ")
    if word == ABSENT:
        raise RollCallError(f"node {node}: {_absence(rest, seconds)}")
    if word == OTHER_JOB:
        raise RollCallError(f"node {node}: at {first}:{port} another job meets ({rest}); set FDTRAIN_PORT to another")
    if word != GO:
        raise RollCallError(f"node {node}: the node at {first}:{port} left while others were waited for; see above")


def _absence(names: str, seconds: float) -> str:
    return f"node {names} didn't come within {seconds:g} s; see what became of it above, or raise FDTRAIN_JOIN_SECONDS"


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
    return socket.create_server(("", port), backlog=512)


def _say(connection: socket.socket, line: str) -> None:
    with suppress(OSError):  # whoever left needs no word
        connection.sendall(line.encode() + b"\n")


def _hear(connection: socket.socket) -> str:
    """A line; empty where the other side left or has nothing to say."""
    try:
        with connection.makefile() as lines:
            return lines.readline().strip()
    except (OSError, ValueError):
        return ""


def main() -> int:
    """Exit code 0 where all nodes are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--node", required=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--expect", nargs="+")
    where.add_argument("--at")
    arguments = parser.parse_args()
    call = (arguments.job, arguments.port, arguments.seconds, arguments.node)
    try:
        if arguments.at:
            attend(*call, arguments.at)
        else:
            preside(*call, arguments.expect)
    except RollCallError as error:
        print(f"launch/torchrun.sh: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
