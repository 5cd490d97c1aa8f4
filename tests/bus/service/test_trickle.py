"""What the daemon takes for connections of any user that leave, beside many that are idle.

`make attack` has 14,500 of those, and half a minute of each kind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from support.daemon import attack
from support.daemon.host import Host
from support.traffic import Connection, connect, listen, many_descriptors

LONG = "SOCKREDIR_ATTACK_S" in os.environ
IDLE, TIMES = (14_500, 10) if LONG else (500, 1)
SECONDS = 3.0  # each time
CHUNK = 250  # connections
RATE = 100.0  # a second
SHARE = 0.05  # of a core
_idle: list[Connection] = []
_KINDS = {
    "refused": attack.refused,
    "half-closed": attack.half_closed,
    "reset": attack.reset,
    "spill": attack.spill,
}


def hold(count: int) -> int:
    """More connections, each with one message each way and no more later; how many there are."""
    many_descriptors()
    with listen() as listener:
        for _ in range(count):
            both = connect(listener)
            both.client.send(b"x")
            both.server.send(both.server.recv(1))
            both.client.recv(1)
            _idle.append(both)
    return len(_idle)


def leave(kind: str, seconds: float) -> int:
    """How many connections were made, and left."""
    begin: Callable[[], None] = _KINDS[kind]
    end, due, made = time.monotonic() + seconds, time.monotonic(), 0
    while due < end:
        time.sleep(max(due - time.monotonic(), 0))
        begin()
        made += 1
        due += 1 / RATE
    return made


@pytest.mark.parametrize(
    "host",
    [{"limits": {"max_connections": 20_000}, "learning": {"unprofitable": False}}],
    indirect=True,
    ids=["-"],
)
def test_trickle(host: Host) -> None:
    daemon, client = host.start(), host.client()
    client.call("Enable")
    traffic, *holders = (host.actor() for _ in range(3))
    for holder in holders:
        while holder.do(hold, CHUNK) < IDLE / len(holders):
            pass
    assert client.call("Stats")["active_connections"] >= IDLE
    shares, total = {}, 0
    for kind in _KINDS:
        before, began = daemon.cpu_seconds, time.monotonic()
        made = sum(traffic.do(leave, kind, SECONDS) for _ in range(TIMES))
        took = time.monotonic() - began
        shares[kind] = (daemon.cpu_seconds - before) / took
        print(f"{kind}: {made / took:.0f} a second beside {IDLE}: {shares[kind]:.1%} of a core")
        stats = client.call("Stats")
        assert stats["active_connections"] >= IDLE
        total += made
    assert stats["accelerated_connections"] >= IDLE + total
    assert stats["paused_window"]
    if LONG:  # a tick of the clock is a large part of three seconds
        assert max(shares.values()) < SHARE, shares
