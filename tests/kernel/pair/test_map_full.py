"""A full sockhash costs acceleration, nothing else (I7)."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support.forced import left
from support.processes import inside
from support.traffic import Connection, check_native, connect, dial, echo, listen
from support.waiting import eventually

LIMIT = 4
IDLE_S = 3.5  # BEGINS_WITHIN_NS of bpf/leave/walk.c, and more than twice revalidate_s
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
        assert generation.members.walk().entries == generation.members.capacity == 2 * LIMIT
        declined = [connect(listener) for _ in range(LIMIT)]
        counters = generation.counters()
        assert counters["accelerated_connections"] == LIMIT
        assert counters["declined_map_full"] == LIMIT
        assert generation.members.walk().entries == 2 * LIMIT
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
            assert generation.members.walk().entries == 2 * LIMIT - 1
            assert generation.counters()["accelerated_connections"] == LIMIT - 1
            assert generation.counters()["declined_map_full"] == 1
            echo(declined, 100)
            check_native(declined.client, declined.server)
            check_native(declined.server, declined.client)
            for both in accelerated:
                echo(both, 100)
            assert generation.counters()["redirected_messages"] == (LIMIT - 1) * 200
        assert generation.members.walk().entries == 2 * LIMIT - 2


def declined_for_want_of_room(generation: Generation) -> int:
    return generation.counters()["declined_map_full"]


@pytest.mark.parametrize(
    "generation", [{"max_connections": LIMIT, "revalidate_s": 0.2}], indirect=True, ids=["four"]
)
@inside()
def test_idle_pairs_make_room(cgroup: Path, generation: Generation) -> None:
    """Those that carry messages or hold some unread stay, and all do while there is room."""
    with listen() as listener:
        busy, *idle = (connect(listener) for _ in range(LIMIT))
        late, unread = idle.pop(), idle[0]

        def goes_on(done: bool = True) -> bool:
            echo(busy, 10)
            return done

        for both in idle:
            echo(both, 10)
        unread.client.sendall(b"unread")
        late.close()
        eventually(
            lambda: goes_on(generation.members.walk().entries == 2 * (LIMIT - 1)), "one has closed"
        )
        deadline = time.monotonic() + IDLE_S
        eventually(lambda: goes_on(time.monotonic() > deadline), "they are idle")
        generation.members.retire(0.1, lambda walked: goes_on(False))
        assert left(generation.counters()) == 0

        last = connect(listener)
        refused = connect(listener)
        assert declined_for_want_of_room(generation) == 1
        eventually(
            lambda: generation.members.retire(
                0.1, lambda walked: goes_on(walked.entries < 2 * LIMIT)
            ),
            "the idle one has left",
        )
        counters = generation.counters()
        assert (counters["retired_idle"], left(counters)) == (1, 1)
        assert unread.server.recv(100) == b"unread"
        check_redirected(generation, busy)
        check_redirected(generation, last)
        check_redirected(generation, unread)
        for both in (idle[1], refused):
            echo(both, 100)
            check_native(both.client, both.server)
        check_redirected(generation, connect(listener))


def check_redirected(generation: Generation, both: Connection) -> None:
    before = generation.counters()["redirected_messages"]
    echo(both, 100)
    assert generation.counters()["redirected_messages"] >= before + 190
