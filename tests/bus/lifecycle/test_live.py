"""The same live connections are accelerated again and again, and lose no byte meanwhile.

A few cycles; `make torture` does a thousand, and a hundred upgrades and reloads. The number of
SOCKREDIR_CYCLES, if set, is that of each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bus.lifecycle.builds import other_build, run_from
from support.checkout import REPOSITORY
from support.daemon import polling
from support.daemon.actor import Actor
from support.daemon.client import Client
from support.daemon.host import Host
from support.emulated import times
from support.waiting import eventually

ECHO, STREAMS, PAUSE_S = 8, 2, 0.002
MANY = "SOCKREDIR_TORTURE" in os.environ
CYCLES, UPGRADES, RELOADS = (1000, 100, 100) if MANY else (times(5), times(2), times(3))
if asked := os.environ.get("SOCKREDIR_CYCLES"):
    CYCLES = UPGRADES = RELOADS = int(asked)
pytestmark = pytest.mark.parametrize(
    "host", [{"scope": {"blocking_readers": "tcp"}}], indirect=True, ids=["tcp"]
)


def compile_first(host: Host, **more: str) -> None:
    """What takes a minute of a busy machine is not what is tried here."""
    daemon = host.start(**more)
    client = host.client()
    client.call("Enable")
    client.call("Disable")
    daemon.stop()


@pytest.fixture
def compiled(host: Host) -> None:
    compile_first(host)


@pytest.fixture
def traffic(host: Host, compiled: None) -> Iterator[Actor]:
    """Request and answer; its end finds every byte."""
    actor = host.actor()
    actor.do(partial(polling.start, ECHO, streams=False, pause=PAUSE_S))
    yield actor
    actor.do(polling.finish)


@pytest.fixture
def streams(host: Host, compiled: None) -> Iterator[Actor]:
    """Never quiet on a busy machine, so not known to join: their bytes count."""
    actor = host.actor()
    actor.do(partial(polling.start, 2 * STREAMS, pause=PAUSE_S))
    yield actor
    actor.do(polling.finish)


def all_accelerated(client: Client, traffic: Actor) -> None:
    wanted = {frozenset(ends) for ends in traffic.do(polling.addresses)}

    def met() -> bool:
        shown = client.call("Connections", "u", 0)
        found = {frozenset((c["client"], c["server"])) for c in shown if not c["leaving"]}
        return wanted <= found

    eventually(met, "the same connections are accelerated")
    before = client.call("Stats")["redirected_messages"]
    eventually(
        lambda: client.call("Stats")["redirected_messages"] > before + 100, "they are redirected"
    )


@pytest.mark.usefixtures("streams")
def test_cycles(host: Host, traffic: Actor) -> None:
    host.start()
    client = host.client()
    for number in range(CYCLES):
        client.call("Enable")
        all_accelerated(client, traffic)
        client.call("Disable")
        eventually(lambda: client.get("State") == "disabled", "all are handed back")
        assert client.call("Stats")["active_connections"] == 0
        print(f"{number + 1} cycles")


@pytest.mark.usefixtures("streams")
def test_upgrades(host: Host, traffic: Actor, tmp_path: Path) -> None:
    other = other_build(tmp_path, "/* another build */")
    compile_first(host, **run_from(other))
    daemon = host.start()
    client = host.client()
    client.call("Enable")
    all_accelerated(client, traffic)
    for number in range(UPGRADES):
        daemon.stop()
        daemon = host.start(**run_from(REPOSITORY if number % 2 else other))
        all_accelerated(client, traffic)
        print(f"{number + 1} upgrades")


@pytest.mark.usefixtures("streams")
def test_reloads(host: Host, traffic: Actor) -> None:
    host.start()
    client = host.client()
    client.call("Enable")
    all_accelerated(client, traffic)
    for number in range(RELOADS):
        scope = {"blocking_readers": "tcp", "exclude_ports": [21 + number % 2]}
        host.overrides["scope"] = scope
        host.configure()
        client.call("Reload")
        assert client.get("Scope")["exclude_ports"] == scope["exclude_ports"]
        all_accelerated(client, traffic)
        print(f"{number + 1} reloads")
