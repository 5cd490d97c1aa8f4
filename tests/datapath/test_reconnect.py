"""connect(AF_UNSPEC) takes a socket off one connection and lets it make another."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockredird.generation import Generation
from support.processes import inside
from support.traffic import Connection, connect, disconnect, echo, listen, pattern

ROUNDS = 100


@pytest.mark.parametrize("unread", [0, 1000], ids=["all read", "unread data"])
@inside()
def test_the_second_connection(cgroup: Path, generation: Generation, unread: int) -> None:
    """Nothing of the first connection reaches the second."""
    with listen() as listener:
        first = connect(listener)
        echo(first, ROUNDS)
        if unread:
            first.server.sendall(pattern(0, unread))
        disconnect(first.client)
        with pytest.raises(ConnectionResetError):
            first.server.sendall(b"to nobody")
        first.client.connect(listener.getsockname())
        second = Connection(first.client, listener.accept()[0])
        echo(second, ROUNDS)
    counters = generation.counters()
    assert counters["accelerated_connections"] == 2
    assert counters["redirected_messages"] == 4 * ROUNDS + (unread > 0)
