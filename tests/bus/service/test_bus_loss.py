"""The bus goes away and comes back; the datapath does not need it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import bus, load, pins
from support.daemon.client import NAME, Client
from support.daemon.host import Host
from support.waiting import eventually


@pytest.fixture
def directory() -> Iterator[Path]:
    # short, as the path of a socket has to be
    with tempfile.TemporaryDirectory(prefix="srt-bus-") as name:
        yield Path(name)


def test_traffic_and_daemon_outlive_the_bus(host: Host, directory: Path) -> None:
    host.bus = bus.address(directory)
    with bus.running(directory):
        daemon = host.start()
        with Client(host.bus) as client:
            client.call("Enable")
            client.call("Subscribe")
            since = client.get("Since")
        before = pins.ids(host.root)
    traffic = host.actor()
    traffic.do(load.start, 4)
    traffic.do(load.advance, 50)
    eventually(lambda: "bus went away" in daemon.stderr, "the log says so")
    assert daemon.running
    assert pins.counters(host.root)["redirected_messages"] >= 4 * 50

    with bus.running(directory), Client(host.bus) as client:
        eventually(lambda: client.ask_bus("NameHasOwner", "s", NAME), "the daemon is back")
        assert pins.ids(host.root) == before
        assert (client.get("State"), client.get("Since")) == ("enabled", since)
        assert not pins.settings(host.root).trace
        client.follow_state()
        client.call("Disable")
        client.await_state("disabled")
        assert daemon.stop() == 0
    traffic.do(load.advance, 50)
    traffic.do(load.finish)
    assert "Traceback" not in daemon.stderr


def test_stopping_without_a_bus(host: Host, directory: Path) -> None:
    host.bus = bus.address(directory)
    with bus.running(directory):
        daemon = host.start()
    eventually(lambda: "bus went away" in daemon.stderr, "the log says so")
    assert daemon.stop() == 0
    assert daemon.messages[-1] == "STOPPING=1"
