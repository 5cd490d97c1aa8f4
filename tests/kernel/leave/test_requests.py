"""The datapath asks the daemon once for what any user may cause again and again."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from sockredird.kernel.ringbuf import RingBuffers
from sockredird.loader.records import REQUEST_LEARNED, REQUEST_ULP, REQUEST_WALK
from support.options import TCP_ULP
from support.processes import inside
from support.traffic import Connection, connection, echo

TIMES = 20


def refused(both: Connection) -> None:
    both.client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def learned(both: Connection) -> None:
    both.server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def encrypted(both: Connection) -> None:
    with suppress(OSError):
        both.client.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")


def walk(generation: Generation) -> None:
    generation.members.walk()


@pytest.mark.parametrize(
    ("use", "request_made", "carry_out"),
    [
        (refused, REQUEST_WALK, walk),
        (learned, REQUEST_WALK, walk),
        (learned, REQUEST_LEARNED, Generation.begin_learned),
        (encrypted, REQUEST_ULP, Generation.begin_learned),
    ],
)
@inside()
def test_once_until_it_is_carried_out(
    cgroup: Path,
    generation: Generation,
    use: Callable[[Connection], None],
    request_made: int,
    carry_out: Callable[[Generation], None],
) -> None:
    made: Counter[int] = Counter()
    rings = RingBuffers()
    rings.add(generation.requests, lambda record: made.update([record[0]]))
    generation.kernel_tls(False)
    for number in range(1, 4):
        for _ in range(TIMES):
            with connection() as both:
                echo(both, 1)
                use(both)
            rings.consume()
        assert made[request_made] == number
        carry_out(generation)
    rings.close()
