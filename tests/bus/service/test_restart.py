"""The daemon goes and comes back; the datapath and the traffic on it do not notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.daemon import load, pins
from support.daemon.actor import Actor
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess

CONNECTIONS = 8


def children_cpu_ticks(pid: int) -> int:
    """CPU time of ended children, proc_pid_stat(5); loading the programs takes several ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[13]) + int(fields[14])


def check_redirecting(host: Host, traffic: Actor) -> dict[str, int]:
    """The pinned counters, after seeing them grow with old connections and with a new one."""
    before = pins.counters(host.root)
    traffic.do(load.advance, 50)
    between = pins.counters(host.root)
    assert between["redirected_messages"] >= before["redirected_messages"] + 50 * CONNECTIONS
    traffic.do(load.echo_once, 50, 64)
    after = pins.counters(host.root)
    assert pins.made(after) == pins.made(before) + 1
    assert left_alone(after) == left_alone(before)
    return after


def left_alone(counts: dict[str, int]) -> dict[str, int]:
    """What was declined or has left."""
    return {
        name: count for name, count in counts.items() if name.startswith(("declined", "retired"))
    }


@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM"])
def test_restart_under_traffic(
    host: Host, daemon: DaemonProcess, enabled: Client, way: str
) -> None:
    # what tells that programs were loaded is seen telling so
    assert children_cpu_ticks(daemon.pid) > 0
    before = pins.ids(host.root)
    properties = {name: enabled.get(name) for name in ("State", "Since", "Scope")}
    traffic = host.actor()
    traffic.do(load.start, CONNECTIONS)
    traffic.do(load.advance, 50)

    if way == "SIGKILL":
        daemon.kill()
    else:
        assert daemon.stop() == 0
        assert daemon.messages[-1] == "STOPPING=1"
    alone = check_redirecting(host, traffic)

    again = host.start()
    assert children_cpu_ticks(again.pid) == 0
    assert pins.ids(host.root) == before
    client = host.client()
    assert {name: client.get(name) for name in properties} == properties
    stats = client.call("Stats")
    assert all(stats[name] >= alone[name] for name in alone)
    assert stats["active_connections"] == CONNECTIONS
    check_redirecting(host, traffic)

    client.call("Disable")
    assert pins.directories(host.root) == []
    traffic.do(load.advance, 50)
    traffic.do(load.finish)


def test_many_restarts_keep_the_counters(host: Host) -> None:
    traffic = host.actor()
    for generation in range(3):
        daemon = host.start()
        client = host.client()
        assert client.get("State") == ("enabled" if generation else "disabled")
        client.call("Enable")
        traffic.do(load.echo_once, 10, 64)
        assert client.call("Stats")["redirected_messages"] == 20 * (generation + 1)
        daemon.kill()


def test_counters_outlive_a_restart_after_disable(
    host: Host, daemon: DaemonProcess, enabled: Client
) -> None:
    host.actor().do(load.echo_once, 10, 64)
    enabled.call("Disable")
    stats = enabled.call("Stats")
    daemon.stop()
    host.start()
    assert host.client().call("Stats") == stats
