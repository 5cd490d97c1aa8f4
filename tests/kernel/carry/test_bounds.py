"""SO_RCVBUF bounds what is unread; FIONREAD is right once a connection has left."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support.processes import inside
from support.traffic import Connection, connect, dial, echo, listen, readable_bytes, wait_readable

RCVBUF, MESSAGE, SAMPLE = 128 << 10, 16 << 10, 64 << 10
RETIRE_TIMEOUT_S = 20.0


def redirected_unread(generation: Generation, both: Connection) -> int:
    """Bytes redirected to a reader that does not read, until the connection is TCP."""
    before = generation.counters()["redirected_bytes"]
    both.client.setblocking(False)
    with suppress(BlockingIOError):
        for _ in range(64 << 10):
            both.client.send(b"x" * MESSAGE)
    assert generation.counters()["redirected_bytes"] > before
    return generation.counters()["redirected_bytes"] - before


def shrink(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RCVBUF)


@inside()
def test_without_it_more_is_taken(cgroup: Path, generation: Generation) -> None:
    with listen() as listener:
        assert redirected_unread(generation, connect(listener)) >= 1 << 20


@pytest.mark.parametrize("end", ["listener", "client"])
@inside()
def test_set_before(cgroup: Path, generation: Generation, end: str) -> None:
    with listen() as listener:
        if end == "listener":
            shrink(listener)
            both = Connection(dial(listener), listener.accept()[0])
        else:
            client = socket.socket()
            shrink(client)
            client.connect(listener.getsockname())
            # the client is the one that does not read
            both = Connection(listener.accept()[0], client)
    assert redirected_unread(generation, both) <= RCVBUF + MESSAGE


@pytest.mark.parametrize("used", [False, True])
@inside()
def test_set_on_a_live_connection(cgroup: Path, generation: Generation, used: bool) -> None:
    """What was granted before is used up: up to 64 KiB."""
    with listen() as listener:
        both = connect(listener)
    if used:
        echo(both, 1, MESSAGE)
    shrink(both.server)
    assert redirected_unread(generation, both) <= RCVBUF + MESSAGE + (SAMPLE if used else 0)


@pytest.mark.parametrize("way", ["option", "disable"])
@inside()
def test_fionread_after_it_has_left(cgroup: Path, generation: Generation, way: str) -> None:
    with listen() as listener:
        both = connect(listener)
    echo(both, 5)
    if way == "option":
        both.client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    else:
        generation.stop()
    both.server.setblocking(False)
    with suppress(BlockingIOError):
        while both.server.recv(1 << 20):
            pass
    both.server.setblocking(True)
    assert generation.members.retire(RETIRE_TIMEOUT_S, lambda walked: walked.entries == 0)
    for sender, reader in ((both.client, both.server), (both.server, both.client)):
        while readable_bytes(reader):  # what TCP had on its way
            reader.recv(1 << 20)
        sender.sendall(b"x" * 3000)
        wait_readable(reader)
        assert readable_bytes(reader) == 3000
        assert reader.recv(1000) == b"x" * 1000
        assert readable_bytes(reader) == 2000
        reader.recv(2000)
