"""What a function that makes connections, and raises for one that does not work, comes to."""

from __future__ import annotations

import errno
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pair import READS_SHOWN
from status import PATIENCE_S, called, counters, soon

WORKS_AFTER = 2  # connections at the most
BEGINS_AFTER = READS_SHOWN + 2  # messages that are read


def learned() -> dict[int, dict[str, Any]]:
    return {entry["port"]: entry for entry in called("Learned")}


def check_untouched_later(exchange: Callable[[], None], why: str, *ports: int) -> None:
    """`exchange` raises for a connection that does not work; it makes one to each of the ports."""
    for number in range(WORKS_AFTER):
        try:
            exchange()
            break
        except OSError as error:
            assert error.errno in (errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE), error
            assert number < WORKS_AFTER - 1, "not even the second connection works"
    for port in ports:
        until_learned(port)
        entry = learned()[port]
        assert entry["why"] == why
        assert entry["pid"] and entry["comm"]
    before = counters()
    for _ in range(5):
        exchange()
    after = counters()
    assert after["declined_learned"] == before["declined_learned"] + 5 * len(ports)
    assert after["redirected_messages"] == before["redirected_messages"]


CONNECTIONS = 5


def check_right(exchange: Callable[[], None], connections: int = CONNECTIONS) -> None:
    """Each connection is on the sockhash, the first one works too, and nothing is learned."""
    before = counters()
    for _ in range(connections):
        exchange()
    after = counters()
    assert learned() == {}
    made = after["accelerated_connections"] - before["accelerated_connections"]
    assert made >= connections
    assert after["declined_learned"] == before["declined_learned"]


def until_known(exchange: Callable[[], None]) -> None:
    """Until connections begin with redirected messages: those before them show how is read."""
    first = counters()
    for _ in range(100):
        before = counters()["redirected_messages"]
        exchange()
        if counters()["redirected_messages"] - before >= 2:
            return
    moved = {name: value - first[name] for name, value in counters().items()}
    moved = {name: value for name, value in moved.items() if value}
    raise AssertionError(f"no connection begins with redirected messages: {moved}")


def until_harmed(exchange: Callable[[], None], port: int) -> None:
    """The first connections may be right, as their first messages go by TCP."""
    for _ in range(100):
        with suppress(OSError):
            exchange()
        if port in learned():
            return
    raise AssertionError("every connection works, and nothing is learned")


def until_learned(port: int) -> None:
    soon(lambda: port in learned(), f"port {port} is not learned")


@contextmanager
def running(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def connect(port: int) -> socket.socket:
    """To a program that has been started just now."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            made = socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
            continue
        # or the second of two messages waits for 40 ms on TCP
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
