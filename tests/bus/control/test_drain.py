"""Disable with a reader that does not read: its data stays for it, and the daemon comes back."""

from __future__ import annotations

import pytest
from dbus_next import Variant

from support.daemon import load, pins, stall
from support.daemon.actor import Actor
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.waiting import eventually

UNREAD = 300_000
impatient = pytest.mark.parametrize(
    "host", [{"limits": {"drain_timeout_s": 0.2}}], indirect=True, ids=["0.2s"]
)
patient = pytest.mark.parametrize(
    "host", [{"limits": {"drain_timeout_s": 600.0}}], indirect=True, ids=["600s"]
)


@pytest.fixture
def stalled(host: Host, enabled: Client) -> Actor:
    """A program with unread redirected data."""
    program = host.actor()
    program.do(stall.send_unread, UNREAD)
    assert enabled.call("Stats")["redirected_bytes"] == UNREAD
    enabled.follow_state()
    return program


@impatient
def test_state_follows_the_reader(host: Host, enabled: Client, stalled: Actor) -> None:
    enabled.call("Disable")
    assert enabled.get("State") == "draining"
    assert pins.settings(host.root).stopped
    assert not (host.state / "enabled.json").exists()
    assert enabled.call("Stats")["map_entries"] == 2
    stalled.do(stall.read_all)
    enabled.await_state("disabled")
    assert pins.directories(host.root) == []
    stats = enabled.call("Stats")
    assert (stats["redirected_bytes"], stats["retired_disable"]) == (UNREAD, 1)
    stalled.do(stall.check_all_native)


@impatient
def test_disable_while_draining(host: Host, enabled: Client, stalled: Actor) -> None:
    enabled.call("Disable")
    done = host.ctl("disable")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("draining: ")
    assert enabled.get("State") == "draining"
    stalled.do(stall.read_all)
    enabled.await_state("disabled")


@impatient
def test_new_connections_are_not_accelerated(host: Host, enabled: Client, stalled: Actor) -> None:
    enabled.call("Disable")
    before = enabled.call("Stats")
    host.actor().do(load.echo_once, 50, 64)
    assert enabled.call("Stats") == before
    stalled.do(stall.read_all)
    enabled.await_state("disabled")


@impatient
def test_enable_while_draining(host: Host, enabled: Client, stalled: Actor) -> None:
    enabled.call("Disable")
    enabled.call("Enable")
    assert enabled.get("State") == "enabled"
    host.actor().do(load.echo_once, 50, 64)
    stats = enabled.call("Stats")
    assert stats["accelerated_connections"] == 2
    assert stats["redirected_bytes"] == UNREAD + 100 * 64
    stalled.do(stall.read_all)
    eventually(lambda: len(pins.directories(host.root)) == 1, "the drained generation is gone")
    assert enabled.get("State") == "enabled"
    assert enabled.call("Stats")["map_entries"] == 0
    stalled.do(stall.check_all_native)


@impatient
def test_another_scope_drains_the_old_one(host: Host, enabled: Client, stalled: Actor) -> None:
    enabled.call("EnableWith", "a{sv}", {"only_ports": Variant("au", [7])})
    assert enabled.get("State") == "enabled"
    assert len(pins.directories(host.root)) == 2
    stalled.do(stall.read_all)
    eventually(lambda: len(pins.directories(host.root)) == 1, "the drained generation is gone")
    assert enabled.get("State") == "enabled"


@impatient
@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM"])
def test_restart_while_draining(
    host: Host, daemon: DaemonProcess, enabled: Client, stalled: Actor, way: str
) -> None:
    enabled.call("Disable")
    if way == "SIGKILL":
        daemon.kill()
    else:
        assert daemon.stop() == 0
    host.start()
    client = host.client()
    client.follow_state()
    assert client.get("State") == "draining"
    stalled.do(stall.read_all)
    client.await_state("disabled")
    assert pins.directories(host.root) == []
    stalled.do(stall.check_all_native)


@impatient
def test_the_program_ends_while_draining(host: Host, enabled: Client, stalled: Actor) -> None:
    enabled.call("Disable")
    stalled.close()
    enabled.await_state("disabled")
    assert pins.directories(host.root) == []


@patient
def test_others_are_served_meanwhile(host: Host, enabled: Client, stalled: Actor) -> None:
    """Disable waits for a slow reader, and no other call waits for Disable."""
    waiting = host.client()
    waiting.begin("Disable")
    enabled.await_state("draining")
    assert enabled.call("Stats")["map_entries"] == 2
    assert host.ctl("status").returncode == 0
    stalled.do(stall.read_all)
    enabled.await_state("disabled")


@patient
def test_enabled_again_meanwhile(host: Host, enabled: Client, stalled: Actor) -> None:
    waiting = host.client()
    waiting.begin("Disable")
    enabled.await_state("draining")
    enabled.call("Enable")
    assert enabled.get("State") == "enabled"
    stalled.do(stall.read_all)
    eventually(lambda: len(pins.directories(host.root)) == 1, "the drained generation is gone")
    assert enabled.get("State") == "enabled"
