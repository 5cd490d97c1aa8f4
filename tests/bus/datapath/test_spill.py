"""A pair that leaves acceleration by itself is taken off the sockhash by the daemon."""

from __future__ import annotations

import pytest

from support.daemon import pins, stall
from support.daemon.actor import Actor
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.waiting import eventually

WINDOW = 65_536
UNREAD = 4 * WINDOW  # as much again fits into TCP's own buffers
pytestmark = pytest.mark.parametrize(
    "host", [{"limits": {"window_bytes": WINDOW}}], indirect=True, ids=["64KiB"]
)


@pytest.fixture
def spilled(host: Host, enabled: Client) -> Actor:
    """A program with unread data, part of it redirected and part on TCP."""
    program = host.actor()
    program.do(stall.send_unread, UNREAD)
    assert WINDOW <= enabled.call("Stats")["redirected_bytes"] < UNREAD
    return program


def check_retired(host: Host, client: Client, program: Actor) -> None:
    """Once the reader has read on."""
    # not asked through Stats, which would itself take the pair off
    eventually(lambda: pins.counters(host.root)["retired_window"] == 1, "the pair is retired")
    stats = client.call("Stats")
    assert stats["map_entries"] == 0
    assert (stats["retired_connections"], stats["retired_window"]) == (1, 1)
    assert stats["active_connections"] == 0
    assert client.get("State") == "enabled"
    program.do(stall.check_all_native)


def test_the_daemon_retires_the_pair(host: Host, enabled: Client, spilled: Actor) -> None:
    stats = enabled.call("Stats")
    assert (stats["map_entries"], stats["retired_connections"]) == (2, 0)
    spilled.do(stall.read_all)
    check_retired(host, enabled, spilled)


def test_a_restarted_daemon_retires_the_pair(
    host: Host, daemon: DaemonProcess, enabled: Client, spilled: Actor
) -> None:
    # an answer to Stats comes after the daemon has taken the request off the ring buffer
    enabled.call("Stats")
    daemon.kill()
    host.start()
    spilled.do(stall.read_all)
    check_retired(host, host.client(), spilled)


def test_a_spill_while_no_daemon_runs(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    daemon.kill()
    program = host.actor()
    program.do(stall.send_unread, UNREAD)
    program.do(stall.read_all)
    assert pins.counters(host.root)["retired_window"] == 0
    host.start()
    check_retired(host, host.client(), program)


def test_disable_with_a_spilled_pair(host: Host, enabled: Client, spilled: Actor) -> None:
    spilled.do(stall.read_all)
    enabled.call("Disable")
    assert enabled.get("State") == "disabled"
    assert pins.directories(host.root) == []
    spilled.do(stall.check_all_native)
