"""Connections of real programs that are older than Enable are accelerated, and their bytes right.

`make programs` installs those that `make test` does not need, and wants a quiet machine; a test
whose program is not there is skipped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bus.programs import running
from bus.programs.running import Ends, Load, Program, Traffic
from support.daemon import polling
from support.daemon.client import Client
from support.daemon.host import Host
from support.emulated import PATIENCE
from support.waiting import eventually

ALONE = Load(connections=8, pause=0.001)
TOGETHER = Load(connections=26, pause=0.05)
STREAMS, STREAM_PAUSE_S = 8, 0.002  # connections, half of them with a stream in both directions
WITHIN_S = 3.0 * PATIENCE
pytestmark = pytest.mark.parametrize(
    "host", [{"scope": {"blocking_readers": "tcp"}}], indirect=True, ids=["tcp"]
)


def check_time(took: float) -> None:
    """Only where nobody else wants the processors: the programs have to send messages first."""
    print(f"accelerated within {took:.2f} s")
    if "SOCKREDIR_QUIET" in os.environ:
        assert took < WITHIN_S


def await_accelerated(client: Client, wanted: set[Ends], traffic: list[Traffic]) -> float:
    """Seconds since now until all are, and at least one to each server behind a proxy."""
    began = time.monotonic()
    missing: set[object] = set()

    def met() -> bool:
        nonlocal missing
        if client.call("Stats")["active_connections"] < len(wanted):
            return False  # to list them takes the daemon time that it needs to join them
        found = running.accelerated(client.call("Connections", "u", 0))
        ports = {end.rpartition(":")[2] for ends in found for end in ends}
        missing = {*(wanted - found), *({str(t.upstream) for t in traffic if t.upstream} - ports)}
        return not missing

    try:
        eventually(met, "connections of before are accelerated")
    except AssertionError as error:
        told = {k: v for k, v in client.call("Stats").items() if v}
        live = client.get("LiveConnections")
        raise AssertionError(f"{error}: {missing}, {told}, {live}") from None
    return time.monotonic() - began


@pytest.mark.parametrize("program", running.ALL)
def test_connections_of_before(host: Host, client: Client, scratch: Path, program: Program) -> None:
    with program(host, scratch, ALONE) as traffic:
        wanted = running.connected([traffic], ALONE)
        client.call("Enable")
        took = await_accelerated(client, wanted, [traffic])
        stats = client.call("Stats")
        assert stats["joined_connections"] >= ALONE.connections
        before = stats["redirected_messages"]
        eventually(
            lambda: client.call("Stats")["redirected_messages"] > before + 500, "it is redirected"
        )
        assert traffic.finish() > 100
        check_time(took)


def test_all_programs_at_once(
    host: Host, client: Client, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    streams = host.actor()
    streams.do(partial(polling.start, STREAMS, pause=STREAM_PAUSE_S))
    with running.all_at_once(host, scratch, TOGETHER) as programs:
        traffic = list(programs.values())
        wanted = running.connected(traffic, TOGETHER)
        assert len(wanted) >= 200
        wanted |= {frozenset(ends) for ends in streams.do(polling.addresses)}
        client.call("Enable")
        took = await_accelerated(client, wanted, traffic)
        record_property("seconds", took)
        before = client.call("Stats")["redirected_messages"]
        eventually(
            lambda: client.call("Stats")["redirected_messages"] > before + 20_000, "they redirect"
        )
        assert running.counted(client, traffic) == 4 * TOGETHER.connections
        eventually(
            lambda: running.accelerated(client.call("Connections", "u", 0)) >= wanted, "they stay"
        )
        for name, one in programs.items():
            assert one.finish() > 10 * TOGETHER.connections, name
        streams.do(polling.finish)
    check_time(took)
