"""Connections older than Enable are accelerated, and come back after they had to leave."""

from __future__ import annotations

import pytest

from support.daemon import load, polling
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.waiting import eventually

COUNT = 8
pytestmark = pytest.mark.parametrize(
    "host", [{"scope": {"blocking_readers": "tcp"}}], indirect=True, ids=["tcp"]
)


def await_joined(client: Client, count: int) -> None:
    """With what kept them from it, if they are not."""
    try:
        eventually(
            lambda: client.call("Stats")["active_connections"] == count,
            f"{count} live connections are accelerated",
        )
    except AssertionError as error:
        stats = {name: value for name, value in client.call("Stats").items() if value}
        raise AssertionError(f"{error}: {stats}, {client.get('LiveConnections')}") from None


def test_enable_takes_over_what_is_there(host: Host, daemon: DaemonProcess, client: Client) -> None:
    traffic = host.actor()
    traffic.do(polling.start, COUNT)
    client.call("Enable")
    await_joined(client, COUNT)
    before = client.call("Stats")["redirected_messages"]
    eventually(
        lambda: client.call("Stats")["redirected_messages"] > before + 1000, "it is redirected"
    )
    stats = client.call("Stats")
    assert stats["joined_connections"] == stats["accelerated_connections"] >= COUNT
    traffic.do(polling.finish)


def test_a_reload_keeps_what_both_scopes_have(
    host: Host, daemon: DaemonProcess, client: Client
) -> None:
    traffic = host.actor()
    client.call("Enable")
    traffic.do(polling.start, COUNT)
    await_joined(client, COUNT)
    host.overrides["scope"] = {"blocking_readers": "tcp", "exclude_ports": [21]}
    host.configure()
    client.call("Reload")
    await_joined(client, COUNT)
    assert client.call("Stats")["joined_connections"] >= COUNT
    traffic.do(polling.finish)


def test_blocking_readers_are_left(host: Host, daemon: DaemonProcess, client: Client) -> None:
    """Of programs that sleep inside recv() none is joined, though they are busy."""
    blocking, polls = host.actor(), host.actor()
    blocking.do(load.start, 4)
    polls.do(polling.start, 2)
    client.call("Enable")
    await_joined(client, 2)
    blocking.do(load.advance, 200)
    assert client.call("Stats")["joined_connections"] == 2
    blocking.do(load.finish)
    polls.do(polling.finish)
