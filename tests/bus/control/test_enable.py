"""Enable and Stats: what is accelerated, shown by exact counts over the bus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dbus_next import Variant

from sockredird.loader.records import COUNTERS
from support.daemon import load, pins
from support.daemon.client import Client
from support.daemon.host import Host

ROUNDS = 10_000
TOTALS = {
    "accelerated_connections",
    "joined_connections",
    "active_connections",
    "declined_connections",
    "retired_connections",
    "redirected_messages",
    "redirected_bytes",
    "map_entries",
    "map_capacity",
    "dropped_events",
}


@pytest.mark.parametrize("way", ["bus", "ctl"])
def test_echo_inside(host: Host, client: Client, way: str) -> None:
    if way == "bus":
        client.call("Enable")
    else:
        assert host.ctl("enable").returncode == 0
    before = client.call("Stats")
    host.actor().do(load.echo_once, ROUNDS, 64)
    after = client.call("Stats")
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert grown == {
        "accelerated_connections": 1,
        "redirected_messages": 2 * ROUNDS,
        "redirected_bytes": 2 * ROUNDS * 64,
    }
    if way == "ctl":
        done = host.ctl("stats", "--json")
        assert json.loads(done.stdout) == after


def test_echo_outside(host: Host, enabled: Client, other_cgroup: Path) -> None:
    before = enabled.call("Stats")
    host.actor(other_cgroup).do(load.echo_once, ROUNDS, 64)
    assert enabled.call("Stats") == before


def test_a_connection_older_than_enable_is_left_alone(host: Host, client: Client) -> None:
    traffic = host.actor()
    traffic.do(load.start, 2)
    traffic.do(load.advance, 10)
    client.call("Enable")
    traffic.do(load.advance, 100)
    stats = client.call("Stats")
    assert stats["redirected_messages"] == 0
    assert stats["map_entries"] == 0
    traffic.do(load.finish)


def test_stats_keys_and_types(enabled: Client) -> None:
    raw: dict[str, Variant] = enabled.raw("Stats")
    assert {value.signature for value in raw.values()} == {"t"}
    reasons = {name for name in COUNTERS if name.startswith(("declined_", "retired_", "paused_"))}
    assert raw.keys() == TOTALS | reasons
    assert raw["map_capacity"].value == 2 * 65536


def test_live_connections_are_counted(host: Host, enabled: Client) -> None:
    traffic = host.actor()
    traffic.do(load.start, 3)
    traffic.do(load.advance, 1)
    stats = enabled.call("Stats")
    assert (stats["active_connections"], stats["map_entries"]) == (3, 6)
    traffic.do(load.finish)
    stats = enabled.call("Stats")
    assert (stats["active_connections"], stats["map_entries"]) == (0, 0)
    assert stats["accelerated_connections"] == 3


def test_enable_is_idempotent(host: Host, enabled: Client) -> None:
    before = pins.ids(host.root)
    since = enabled.get("Since")
    enabled.call("Enable")
    assert pins.ids(host.root) == before
    assert enabled.get("Since") == since


def test_counters_go_on_after_disable_and_enable(host: Host, enabled: Client) -> None:
    traffic = host.actor()
    for cycle in range(1, 3):
        traffic.do(load.echo_once, 50, 64)
        assert enabled.call("Stats")["redirected_messages"] == 100 * cycle
        enabled.call("Disable")
        assert enabled.call("Stats")["redirected_messages"] == 100 * cycle
        enabled.call("Enable")
