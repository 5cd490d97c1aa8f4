"""The messages per second of real connections, as the estimate counts them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sockredird.check import estimate
from support import topology
from support.daemon.actor import Actor
from support.namespaces import enter_network
from support.traffic import Connection, connect, listen, read_exactly


def watched() -> list[Any]:
    """What is seen of plain connections, in the network namespace of the caller."""
    seen = estimate.watch(lambda: [], lambda job: job())
    assert seen.tcp is not None
    assert seen.accelerated == []
    return seen.tcp


@contextmanager
def round_trips(address: str, there: int, back: int) -> Iterator[list[int]]:
    """A connection with messages of these sizes, while the with block runs; how many so far."""
    with listen(address) as listener:
        both = connect(listener, address)
    counts = [0]
    ending = threading.Event()

    def serve() -> None:
        while read_exactly(both.server, there):
            both.server.sendall(b"b" * back)

    def ask() -> None:
        while not ending.wait(0.001):
            both.client.sendall(b"a" * there)
            read_exactly(both.client, back)
            counts[0] += 1
        both.client.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=function) for function in (serve, ask)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        ending.set()
        for thread in threads:
            thread.join()
        both.close()


def rates_of_round_trips(address: str, there: int, back: int) -> tuple[list[Any], float]:
    """What is seen of them, and how many there were per second."""
    enter_network()
    with round_trips(address, there, back) as counts:
        began, before = time.monotonic(), counts[0]
        seen = watched()
        return seen, (counts[0] - before) / (time.monotonic() - began)


def nothing() -> list[Any]:
    """What is seen of a connection that carries nothing, and of a listener."""
    enter_network()
    with listen() as listener:
        both = connect(listener)
        both.client.sendall(b"before")
        seen = watched()
        both.close()
    return seen


def one_end_elsewhere() -> tuple[list[Any], int]:
    """What is seen of a connection whose other end is in another network namespace."""
    network = topology.veth(topology.Family(4))
    both: Connection = network.connect()
    ending = threading.Event()
    sent = [0]

    def send() -> None:
        while not ending.wait(0.001):
            both.client.sendall(b"a")
            sent[0] += len(both.server.recv(1))

    thread = threading.Thread(target=send)
    thread.start()
    with network.client.entered():
        seen = watched()
    ending.set()
    thread.join()
    both.close()
    return seen, sent[0]


def inside(function: Callable[..., Any], *arguments: Any) -> Any:
    with Actor() as actor:
        return actor.do(function, *arguments)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(("there", "back"), [(100, 3000), (1, 60_000)])
def test_messages_and_their_sizes(address: str, there: int, back: int) -> None:
    (connection,), trips = inside(rates_of_round_trips, address, there, back)
    assert trips > 20
    for messages, _ in connection:
        assert messages == pytest.approx(trips, rel=0.3)
    sizes = sorted(size / messages for messages, size in connection)
    assert sizes == pytest.approx([there, back], rel=0.02)


def test_an_idle_connection_is_not_seen() -> None:
    assert inside(nothing) == []


def test_nor_one_whose_other_end_is_elsewhere() -> None:
    seen, sent = inside(one_end_elsewhere)
    assert sent > 20
    assert seen == []
