"""Disable under traffic: connections carry on over TCP, and nothing of ours is left."""

from __future__ import annotations

import os

from support.daemon import load, pins
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.traffic import Connection, check_native, connect, echo, listen

CONNECTIONS = 16
CYCLES = 50 if "SOCKREDIR_TORTURE" in os.environ else 10
RENEWED = 4
PAUSE_S = 0.001  # leaves the compiler some of two CPUs


def test_under_traffic(host: Host, daemon: DaemonProcess, client: Client) -> None:
    before = pins.machine()
    client.call("Enable")
    ours, now = pins.ids(host.root), pins.machine()
    # nothing of ours was there before, and all of it can be seen
    for kind in ("programs", "maps", "links"):
        assert getattr(ours, kind) <= getattr(now, kind) - getattr(before, kind)
    assert pins.held_by(daemon.pid)
    traffic = host.actor()
    traffic.do(load.start, CONNECTIONS)
    traffic.do(load.advance, 50)
    stats = client.call("Stats")
    assert stats["active_connections"] == CONNECTIONS
    assert stats["redirected_messages"] >= CONNECTIONS * 50

    client.call("Disable")
    assert client.get("State") == "disabled"
    assert pins.directories(host.root) == []
    assert not (host.state / "enabled.json").exists()
    stats = client.call("Stats")
    assert stats["retired_disable"] == CONNECTIONS
    assert (stats["active_connections"], stats["map_entries"], stats["map_capacity"]) == (0, 0, 0)
    traffic.do(load.advance, 50)
    assert client.call("Stats") == stats
    assert pins.held_by(daemon.pid) == set()
    pins.await_release(ours)
    traffic.do(load.finish)


_held: list[Connection] = []


def hold_connection() -> None:
    with listen() as listener:
        _held.append(connect(listener))
    echo(_held[0], 10)


def check_held_is_native() -> None:
    check_native(_held[0].client, _held[0].server)
    check_native(_held[0].server, _held[0].client)


def test_an_idle_connection_is_native_afterwards(host: Host, enabled: Client) -> None:
    program = host.actor()
    program.do(hold_connection)
    assert enabled.call("Stats")["redirected_messages"] == 20
    enabled.call("Disable")
    program.do(check_held_is_native)


def test_many_cycles_under_traffic(host: Host, daemon: DaemonProcess, client: Client) -> None:
    seen: list[pins.Ids] = []
    traffic = host.actor()
    traffic.do(load.start, CONNECTIONS, PAUSE_S)
    accelerated = redirected = 0
    for _ in range(CYCLES):
        client.call("Enable")
        seen.append(pins.ids(host.root))
        traffic.do(load.renew, RENEWED)
        traffic.do(load.advance, 5)
        client.call("Disable")
        assert client.get("State") == "disabled"
        assert pins.directories(host.root) == []
        stats = client.call("Stats")
        # where a cycle takes long, others join besides, and may end before Disable
        at_handshake = stats["accelerated_connections"] - stats["joined_connections"]
        assert at_handshake == accelerated + RENEWED
        assert stats["redirected_messages"] >= redirected + RENEWED * 5
        accelerated = at_handshake
        redirected = stats["redirected_messages"]
    assert CYCLES * RENEWED <= stats["retired_disable"] <= stats["accelerated_connections"]
    traffic.do(load.advance, 5)
    traffic.do(load.finish)
    assert pins.held_by(daemon.pid) == set()
    pins.await_release(*seen)
