"""connect(AF_UNSPEC) takes a socket off one connection and lets it make another."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from sockredird.datapath.members import Walked
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


def nothing_left(walked: Walked) -> bool:
    return walked.entries == 0


@inside()
def test_while_the_datapath_is_taken_away(cgroup: Path, generation: Generation) -> None:
    """A pair with unread data stays on the sockhash until that is read, or its socket connects."""
    with listen() as listener:
        first = connect(listener)
        echo(first, ROUNDS)
        first.server.sendall(pattern(0, 1000))
        generation.stop()
        assert not generation.members.retire(0, nothing_left)
        disconnect(first.client)
        first.client.connect(listener.getsockname())
        second = Connection(first.client, listener.accept()[0])
        echo(second, ROUNDS)
    assert generation.members.retire(10, nothing_left)
    counters = generation.counters()
    assert counters["accelerated_connections"] == 1
    assert counters["redirected_messages"] == 2 * ROUNDS + 1
