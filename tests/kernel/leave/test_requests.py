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
from sockredird.loader.records import REQUEST_JOIN, REQUEST_LEARNED, REQUEST_ULP, REQUEST_WALK
from support import namespaces
from support.kernel_facts import FIONREAD_OMITS_TCP
from support.options import TCP_ULP
from support.processes import inside
from support.traffic import Connection, connection, echo, listen

TIMES = 20


def refused(both: Connection) -> None:
    both.client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def learned(both: Connection) -> None:
    both.server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def encrypted(both: Connection) -> None:
    with suppress(OSError):
        both.client.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")


def declined(_both: Connection) -> None:
    with listen() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"early")
            listener.accept()[0].close()


def fast_opened(_both: Connection) -> None:
    with listen() as listener, socket.socket() as client:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        client.sendto(b"early", socket.MSG_FASTOPEN, listener.getsockname())
        listener.accept()[0].close()
    assert namespaces.netstat("TCPFastOpenPassive")


def look(generation: Generation) -> None:
    list(generation.candidates())


def walk(generation: Generation) -> None:
    generation.members.walk()


@pytest.mark.parametrize(
    ("use", "request_made", "carry_out"),
    [
        (refused, REQUEST_WALK, walk),
        (learned, REQUEST_WALK, walk),
        (learned, REQUEST_LEARNED, Generation.begin_learned),
        (encrypted, REQUEST_ULP, Generation.begin_learned),
        pytest.param(
            *(declined, REQUEST_JOIN, look),
            marks=pytest.mark.skipif(
                not FIONREAD_OMITS_TCP, reason="connections with early data are paired at once"
            ),
        ),
        (fast_opened, REQUEST_JOIN, look),
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
    namespaces.enter_network()
    namespaces.allow_fast_open()
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
