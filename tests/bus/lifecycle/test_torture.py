"""The same again and again, under byte-checked traffic; `make torture` does it for an hour."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.lifecycle import trickle
from bus.lifecycle.builds import other_build, run_from
from support.checkout import REPOSITORY
from support.daemon import pins
from support.daemon.actor import Actor
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.emulated import times

CONVERSATIONS = 4
MANY = "SOCKREDIR_TORTURE" in os.environ
KILLS, UPGRADES, CYCLES = (1000, 200, 1000) if MANY else (times(20), times(6), times(20))


@pytest.fixture
def traffic(host: Host) -> Iterator[Actor]:
    actor = host.actor()
    actor.do(trickle.start, CONVERSATIONS)
    yield actor
    actor.do(trickle.finish)


def descriptors(daemon: DaemonProcess) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def test_kills(host: Host, traffic: Actor) -> None:
    """No error, the same objects, counters that go on, and a daemon that does not grow."""
    daemon = host.start()
    assert host.ctl("enable").returncode == 0
    objects = pins.ids(host.root)
    first = descriptors(daemon), daemon.resident_bytes
    before = 0
    for _ in range(KILLS):
        traffic.do(trickle.renew)
        daemon.kill()
        traffic.do(trickle.renew)
        daemon = host.start()
        now = pins.counters(host.root)["redirected_bytes"]
        assert now > before
        before = now
    assert pins.ids(host.root) == objects
    assert descriptors(daemon) <= first[0]
    assert daemon.resident_bytes < 1.2 * first[1]


def test_upgrades(host: Host, traffic: Actor, tmp_path: Path) -> None:
    """Two builds take over from each other: no error, and the totals go on."""
    other = other_build(tmp_path, "/* another build */")
    host.start().stop()
    daemon = host.start()
    assert host.ctl("enable").returncode == 0
    client = host.client()
    seen = pins.ids(host.root)
    before = 0
    for number in range(UPGRADES):
        traffic.do(trickle.renew)
        daemon.stop()
        traffic.do(trickle.renew)
        daemon = host.start(**run_from(REPOSITORY if number % 2 else other))
        assert client.get("State") == "enabled"
        assert len(pins.directories(host.root)) == 1, "the generation before is still there"
        now = pins.ids(host.root)
        assert not now.programs & seen.programs, "not taken over"
        seen = now
        total = client.call("Stats")["redirected_bytes"]
        assert total >= before > 0 or number == 0
        before = total


def test_cycles(host: Host, traffic: Actor) -> None:
    """With slow readers among the clients, whose unread bytes Disable has to leave to them."""
    daemon = host.start()
    client = host.client()
    traffic.do(slow_readers)
    before = unread = 0
    first: tuple[int, int] | None = None
    for _ in range(CYCLES):
        client.call("Enable")
        traffic.do(trickle.renew)
        traffic.do(renew_slow_reader)
        unread += any(one["server_unread_bytes"] for one in client.call("Connections", "u", 0))
        client.call("Disable")
        assert client.get("State") == "disabled"
        total = client.call("Stats")["redirected_bytes"]
        assert total > before
        before = total
        assert pins.directories(host.root) == []
        first = first or (descriptors(daemon), daemon.resident_bytes)
    assert unread > CYCLES // 2, "no slow reader was met"
    assert first is not None
    assert descriptors(daemon) <= first[0]
    assert daemon.resident_bytes < 1.2 * first[1]


def slow_readers() -> None:
    trickle.start(2, slow=True)


def renew_slow_reader() -> None:
    trickle.renew(slow=True)
