"""The end that outlives its peer's shutdown(2) is taken off the sockhash if it sends much."""

from __future__ import annotations

import socket

from support.daemon import pins
from support.daemon.client import Client
from support.daemon.host import Host
from support.traffic import Connection, Stream, check_native, connect, echo, listen, pattern
from support.waiting import eventually

CHUNK = 65_536
ANSWER = 4 << 20  # over ANSWER_BYTES of redirect.c

_held: list[tuple[Connection, Stream]] = []


def half_close() -> None:
    with listen() as listener:
        both = connect(listener)
    echo(both, 1)
    both.client.shutdown(socket.SHUT_WR)
    _held.append((both, Stream()))


def answer(size: int) -> None:
    """Of so many bytes, to the end that waits."""
    both, stream = _held[-1]
    end = stream.position + size
    while stream.position < end:
        length = min(CHUNK, end - stream.position)
        both.server.sendall(pattern(stream.position, length))
        stream.read(both.client, length)


def check_both_native() -> None:
    both, _ = _held[-1]
    check_native(both.server, both.client)


def test_long_answer(host: Host, enabled: Client) -> None:
    program = host.actor()
    program.do(half_close)
    program.do(answer, 1000)
    # not asked through Stats, which would itself take the end off
    program.do(answer, ANSWER)
    eventually(lambda: pins.counters(host.root)["retired_half_closed"] == 1, "the end is off")
    program.do(answer, 1000)
    assert enabled.call("Stats")["map_entries"] == 0
    program.do(check_both_native)


def hang_up() -> None:
    _held.pop()[0].close()


def test_short_answer(host: Host, enabled: Client) -> None:
    """It stays until it is closed: to walk for each such connection would cost too much."""
    program = host.actor()
    program.do(half_close)
    program.do(answer, 1000)
    assert enabled.call("Stats")["map_entries"] == 1
    program.do(hang_up)
    stats = enabled.call("Stats")
    assert (stats["map_entries"], stats["retired_connections"]) == (0, 0)
