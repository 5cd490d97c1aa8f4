"""A full sockhash costs acceleration, nothing else (I7)."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support.processes import inside
from support.traffic import check_native, connect, dial, echo, listen

LIMIT = 4
tiny = pytest.mark.parametrize(
    "generation", [{"max_connections": LIMIT}], indirect=True, ids=["four"]
)


@tiny
@inside()
def test_no_room_for_the_client(cgroup: Path, generation: Generation) -> None:
    with listen() as listener:
        accelerated = [connect(listener) for _ in range(LIMIT)]
        for both in accelerated:
            echo(both, 1)
        assert generation.walk().entries == generation.capacity() == 2 * LIMIT
        declined = [connect(listener) for _ in range(LIMIT)]
        counters = generation.counters()
        assert counters["accelerated_connections"] == LIMIT
        assert counters["declined_map_full"] == LIMIT
        assert generation.walk().entries == 2 * LIMIT
        for both in accelerated + declined:
            echo(both, 100)
        for both in declined:
            check_native(both.client, both.server)
            check_native(both.server, both.client)
        assert generation.counters()["redirected_messages"] == LIMIT * 202

        # room is room again
        accelerated[0].close()
        echo(connect(listener), 100)
    assert generation.counters()["accelerated_connections"] == LIMIT + 1
    assert generation.counters()["redirected_messages"] == LIMIT * 202 + 200


@tiny
@inside()
def test_no_room_for_the_server(cgroup: Path, generation: Generation) -> None:
    """The last place goes to a client, whose server then finds none: both leave."""
    with listen() as deferring, listen() as listener:
        # a client end that waits for its server end holds one place
        deferring.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        with closing(dial(deferring)):
            accelerated = [connect(listener) for _ in range(LIMIT - 1)]
            declined = connect(listener)
            assert generation.walk().entries == 2 * LIMIT - 1
            assert generation.counters()["accelerated_connections"] == LIMIT - 1
            assert generation.counters()["declined_map_full"] == 1
            echo(declined, 100)
            check_native(declined.client, declined.server)
            check_native(declined.server, declined.client)
            for both in accelerated:
                echo(both, 100)
            assert generation.counters()["redirected_messages"] == (LIMIT - 1) * 200
        assert generation.walk().entries == 2 * LIMIT - 2
