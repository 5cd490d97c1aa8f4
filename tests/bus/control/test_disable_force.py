"""Disable for those who cannot wait: what does not drain is reset, and its programs are named."""

from __future__ import annotations

import json
import os
import re
import time

import pytest
from dbus_next import DBusError, Variant

from support.daemon import load, pins, stall
from support.daemon.actor import Actor
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess

UNREAD = 300_000
FORCE = {"force": Variant("b", True)}
impatient = pytest.mark.parametrize(
    "host", [{"limits": {"drain_timeout_s": 0.5}}], indirect=True, ids=["0.5s"]
)


@pytest.fixture
def stalled(host: Host, enabled: Client) -> Actor:
    """A program with unread redirected data."""
    program = host.actor()
    program.do(stall.send_unread, UNREAD)
    return program


@impatient
def test_what_does_not_drain_is_reset(
    host: Host, daemon: DaemonProcess, enabled: Client, stalled: Actor
) -> None:
    began = time.monotonic()
    enabled.call("DisableWith", "a{sv}", FORCE)
    assert time.monotonic() - began >= 0.5
    assert enabled.get("State") == "disabled"
    assert pins.directories(host.root) == []
    assert stalled.do(stall.errors) == ["ECONNABORTED", "ECONNRESET"]
    assert re.search(r"1 connection reset, as not drained in time: .*\[\d+\]", daemon.stderr)


@impatient
def test_what_drains_is_not(host: Host, enabled: Client) -> None:
    traffic = host.actor()
    traffic.do(load.start, 4)
    traffic.do(load.advance, 10)
    enabled.call("DisableWith", "a{sv}", FORCE)
    assert enabled.get("State") == "disabled"
    traffic.do(load.advance, 10)
    traffic.do(load.finish)


@pytest.mark.parametrize("host", [{"limits": {"drain_timeout_s": 5.0}}], indirect=True)
def test_the_timeout_counts_from_the_first_disable(enabled: Client, stalled: Actor) -> None:
    enabled.call("Disable")
    assert enabled.get("State") == "draining"
    began = time.monotonic()
    enabled.call("DisableWith", "a{sv}", FORCE)
    assert time.monotonic() - began < 5.0
    assert enabled.get("State") == "disabled"


@impatient
def test_without_force_it_waits(enabled: Client, stalled: Actor) -> None:
    for options in ({}, {"force": Variant("b", False)}):
        enabled.call("DisableWith", "a{sv}", options)
        assert enabled.get("State") == "draining"
    enabled.follow_state()
    stalled.do(stall.read_all)
    enabled.await_state("disabled")
    stalled.do(stall.check_all_native)


@pytest.mark.parametrize(
    "wrong", [{"now": Variant("b", True)}, {"force": Variant("s", "yes")}], ids=["key", "type"]
)
def test_wrong_options(enabled: Client, wrong: dict[str, Variant]) -> None:
    with pytest.raises(DBusError) as caught:
        enabled.call("DisableWith", "a{sv}", wrong)
    assert caught.value.type == "org.sockredir.Error.InvalidConfig"
    assert enabled.get("State") == "enabled"


@impatient
def test_the_command(host: Host, enabled: Client, stalled: Actor) -> None:
    """It says how many connections were reset, and whose."""
    comm = stalled.do(own_comm)
    done = host.ctl("disable", "--force")
    assert (done.returncode, done.stdout) == (0, "")
    head, line = done.stderr.splitlines()
    assert head == "reset 1 connection that had not drained"
    assert re.fullmatch(
        rf"  127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+  {comm}\[{stalled.pid}\] > .*", line
    )
    assert enabled.get("State") == "disabled"


def own_comm() -> str:
    with open(f"/proc/{os.getpid()}/comm") as file:  # noqa: PTH123
        return file.read().strip()


@impatient
def test_entries_while_draining(host: Host, enabled: Client, stalled: Actor) -> None:
    """The capacity counts the table of the generation that drains, too."""
    enabled.call("Disable")
    stats = json.loads(host.ctl("stats", "--json").stdout)
    assert (stats["map_entries"], stats["map_capacity"]) == (2, 2 * 65536)
    status = " ".join(host.ctl("status").stdout.split())
    assert "(2 of 131,072 sockhash entries)" in status
    done = host.ctl("enable")
    assert (done.returncode, done.stderr) == (
        0,
        "enabled; older connections are still being handed back to TCP\n",
    )


def test_disabled_already(host: Host, client: Client) -> None:
    done = host.ctl("disable")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "acceleration was already disabled\n"
