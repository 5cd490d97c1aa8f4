"""Live connections are handed back to TCP: nothing lost, nobody disturbed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from sockredird.datapath.members import Walked
from support import textbook
from support.background import Background
from support.datapath import plan
from support.emulated import PATIENCE, times
from support.fleet import Fleet, fleet
from support.processes import inside
from support.traffic import check_native, connect, connection, echo, listen, pattern, read_exactly

CLIENTS = 16
CYCLES = times(20)
RETIRE_TIMEOUT_S = 20.0 * PATIENCE


def empty(walked: Walked) -> bool:
    return walked.entries == 0


@inside()
def test_the_textbook_loses_data(cgroup: Path, bpffs: Path) -> None:
    """The traffic below notices: a socket's unread data is purged when it leaves the sockhash."""
    with textbook.attached(bpffs / "textbook-unloaded", cgroup) as members:
        traffic = Fleet(CLIENTS, stall_timeout=1)
        traffic.wait(20)
        assert not traffic.errors
        assert textbook.delete_members(members) >= CLIENTS
        # a client whose data is gone ends by its stall timeout, unless it reads something else
        traffic.wait(1_000_000)
    print(traffic.errors)
    assert traffic.errors


@inside()
def test_under_traffic(cgroup: Path, generation: Generation) -> None:
    with fleet(CLIENTS) as traffic:
        traffic.wait(20)
        assert generation.members.walk().connections == CLIENTS
        generation.stop()
        assert generation.members.retire(RETIRE_TIMEOUT_S, empty)
        redirected = generation.counters()["redirected_messages"]
        traffic.wait(20)
        counters = generation.counters()
        assert counters["redirected_messages"] == redirected > CLIENTS * 40
        assert counters["accelerated_connections"] == CLIENTS
        assert counters["retired_disable"] == CLIENTS


@pytest.mark.parametrize("used", [False, True], ids=["never used", "used"])
@inside()
def test_blocked_readers(cgroup: Path, generation: Generation, used: bool) -> None:
    """recv() that began on the sockhash returns with what TCP brings after it."""
    connections = []
    with listen() as listener:
        for number in range(CLIENTS):
            both = connect(listener)
            for end in (both.client, both.server):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, number % 2)
            connections.append(both)
            if used:
                echo(both, 10)
    ends = [end for both in connections for end in (both.client, both.server)]
    data = pattern(0, 1000)
    readers = [Background(read_exactly, end, len(data)) for end in ends]
    for reader in readers:
        reader.wait_in_kernel()
    generation.stop()
    assert generation.members.retire(RETIRE_TIMEOUT_S, empty)
    for end in ends:
        end.sendall(data)
    assert [reader.join(10) for reader in readers] == [data] * len(ends)
    for both in connections:
        check_native(both.client, both.server)
        check_native(both.server, both.client)
    assert generation.counters()["redirected_messages"] == (20 * CLIENTS if used else 0)
    assert generation.counters()["retired_disable"] == CLIENTS


@inside()
def test_unread_data_is_kept(cgroup: Path, generation: Generation) -> None:
    """A pair leaves when its readers have caught up, and not before."""
    data = pattern(0, 100_000)
    with connection() as both:
        both.client.sendall(data)
        both.server.sendall(data)
        generation.stop()
        assert not generation.members.retire(0.1, empty)
        both.client.sendall(data)  # this one by TCP, behind the others
        assert read_exactly(both.server, 2 * len(data)) == data * 2
        assert not generation.members.retire(0.1, empty)
        assert generation.members.walk().entries == 2
        assert read_exactly(both.client, len(data)) == data
        assert generation.members.retire(RETIRE_TIMEOUT_S, empty)
        check_native(both.client, both.server)
        check_native(both.server, both.client)


@inside(timeout=240)
def test_cycles_under_traffic(cgroup: Path, bpffs: Path) -> None:
    """Enable and Disable, again and again, below clients that reconnect now and then."""
    with fleet(CLIENTS, reconnect_every=10) as traffic:
        for number in range(CYCLES):
            generation = Generation.create(bpffs / "cycles", number, plan(cgroup))
            traffic.wait(12)  # each client has reconnected since
            generation.stop()
            assert generation.members.retire(RETIRE_TIMEOUT_S, empty), generation.members.walk()
            counters = generation.counters()
            assert counters["accelerated_connections"] >= CLIENTS
            assert counters["redirected_messages"] > CLIENTS
            generation.remove()
    assert traffic.connections > CLIENTS * CYCLES
