"""A direction that had to go to TCP behind unread data comes back once that is read."""

from __future__ import annotations

import pytest

from support.daemon import pins, stall
from support.daemon.actor import Actor
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.forced import forced
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


def check_redirected_again(host: Host, program: Actor) -> None:
    before = pins.counters(host.root)
    assert forced(before, "window") == 1

    def redirected() -> bool:
        program.do(stall.talk)
        now = pins.counters(host.root)["redirected_messages"]
        return now >= before["redirected_messages"] + stall.MESSAGES

    eventually(redirected, "messages are redirected again")


def test_it_comes_back(host: Host, enabled: Client, spilled: Actor) -> None:
    stats = enabled.call("Stats")
    assert (stats["map_entries"], stats["retired_connections"]) == (2, 0)
    spilled.do(stall.read_all)
    check_redirected_again(host, spilled)


def test_with_a_daemon_that_was_restarted(
    host: Host, daemon: DaemonProcess, enabled: Client, spilled: Actor
) -> None:
    daemon.kill()
    host.start()
    spilled.do(stall.read_all)
    check_redirected_again(host, spilled)


def test_while_no_daemon_runs(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    daemon.kill()
    program = host.actor()
    program.do(stall.send_unread, UNREAD)
    program.do(stall.read_all)
    check_redirected_again(host, program)


def test_disable_meanwhile(host: Host, enabled: Client, spilled: Actor) -> None:
    spilled.do(stall.read_all)
    enabled.call("Disable")
    assert enabled.get("State") == "disabled"
    assert pins.directories(host.root) == []
    spilled.do(stall.check_all_native)
