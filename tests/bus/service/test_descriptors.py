"""A daemon without descriptors changes nothing that is remembered, and goes on when it has some."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from dbus_next import DBusError

from support.daemon import load, pins
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess


@contextmanager
def without_descriptors(daemon: DaemonProcess) -> Iterator[None]:
    """It can open nothing: its limit is the lowest number that it does not use."""
    used = {int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd")}  # noqa: PTH208
    lowest = next(number for number in range(len(used) + 1) if number not in used)
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)


def attempt(client: Client, member: str) -> str:
    """The text of the error; empty if it succeeded."""
    try:
        client.call(member)
    except DBusError as error:
        return str(error.text)
    return ""


def test_enabled_stays_enabled(host: Host, daemon: DaemonProcess, client: Client) -> None:
    client.call("Enable")
    ids, intent = pins.ids(host.root), host.state / "enabled.json"
    remembered = json.loads(intent.read_text())
    with without_descriptors(daemon):
        for member in ("Stats", "Enable", "Reload", "Check", "Stats"):
            text = attempt(client, member)
            assert "\n" not in text and "Traceback" not in text
        assert client.get("State") == "enabled"
    assert json.loads(intent.read_text()) == remembered
    assert (client.get("State"), client.get("Problem")) == ("enabled", "")
    client.call("Stats")
    assert client.get("Problem") == ""
    client.call("Check")  # takes away what the one before could not
    assert pins.directories(host.root) == ["generation-1"]
    assert pins.ids(host.root) == ids
    host.actor().do(load.echo_once, 10, 64)
    assert client.call("Stats")["redirected_messages"] == 20


def test_disabled_stays_disabled(host: Host, daemon: DaemonProcess, client: Client) -> None:
    with without_descriptors(daemon):
        assert attempt(client, "Enable")
        assert client.get("State") == "disabled"
    assert not (host.state / "enabled.json").exists()
    client.call("Check")  # takes away what the one before could not
    assert pins.directories(host.root) == []
    client.call("Enable")
    assert client.get("State") == "enabled"
