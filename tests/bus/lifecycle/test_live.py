"""The same live connections are accelerated again and again, and lose no byte meanwhile.

A few cycles; `make torture` does a thousand, and a hundred upgrades and reloads, with 200 and more
connections of real programs. The number of SOCKREDIR_CYCLES, if set, is that of each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from bus.lifecycle.builds import other_build, run_from
from bus.programs import running
from bus.programs.running import Ends, Load
from support.checkout import REPOSITORY
from support.daemon import polling
from support.daemon.actor import Actor
from support.daemon.client import Client
from support.daemon.host import Host
from support.emulated import times
from support.waiting import eventually

ECHO, STREAMS, PAUSE_S = 8, 2, 0.002
LOAD = Load(connections=26, pause=0.2)  # of each program
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
def traffic(host: Host, compiled: None, scratch: Path) -> Iterator[set[Ends]]:
    """Connections that are older than Enable, with request and answer; their ends compare bytes."""
    actor = host.actor()
    actor.do(partial(polling.start, ECHO, streams=False, pause=PAUSE_S))
    wanted = {frozenset(ends) for ends in actor.do(polling.addresses)}
    with running.all_at_once(host, scratch, LOAD) if MANY else nullcontext({}) as programs:
        yield wanted | running.connected(list(programs.values()), LOAD)
        for name, program in programs.items():
            assert program.finish() > LOAD.connections, name
    actor.do(polling.finish)


@pytest.fixture
def streams(host: Host, compiled: None) -> Iterator[Actor]:
    """Never quiet on a busy machine, so not known to join: their bytes count."""
    actor = host.actor()
    actor.do(partial(polling.start, 2 * STREAMS, pause=PAUSE_S))
    yield actor
    actor.do(polling.finish)


def all_accelerated(client: Client, traffic: set[Ends], what: str) -> None:
    """Each of them redirects in both directions. Prints how long that took."""
    began = time.monotonic()
    missing = traffic

    def met() -> bool:
        nonlocal missing
        if client.call("Stats")["active_connections"] >= len(traffic):
            missing = traffic - running.accelerated(client.call("Connections", "u", 0))
        return not missing

    try:
        eventually(met, "the same connections are accelerated")
    except AssertionError as error:
        told = {k: v for k, v in client.call("Stats").items() if v}
        raise AssertionError(
            f"{what}, {error}: {missing}, {told}, {client.get('LiveConnections')}"
        ) from None
    print(f"{what}: {len(traffic)} in {time.monotonic() - began:.2f} s", flush=True)


@pytest.mark.usefixtures("streams")
def test_cycles(host: Host, traffic: set[Ends]) -> None:
    host.start()
    client = host.client()
    for number in range(CYCLES):
        client.call("Enable")
        all_accelerated(client, traffic, f"cycle {number + 1}")
        client.call("Disable")
        eventually(lambda: client.get("State") == "disabled", "all are handed back")
        assert client.call("Stats")["active_connections"] == 0


@pytest.mark.usefixtures("streams")
def test_upgrades(host: Host, traffic: set[Ends], tmp_path: Path) -> None:
    other = other_build(tmp_path, "/* another build */")
    compile_first(host, **run_from(other))
    daemon = host.start()
    client = host.client()
    client.call("Enable")
    all_accelerated(client, traffic, "before")
    for number in range(UPGRADES):
        daemon.stop()
        daemon = host.start(**run_from(REPOSITORY if number % 2 else other))
        all_accelerated(client, traffic, f"upgrade {number + 1}")


@pytest.mark.usefixtures("streams")
def test_reloads(host: Host, traffic: set[Ends]) -> None:
    host.start()
    client = host.client()
    client.call("Enable")
    all_accelerated(client, traffic, "before")
    for number in range(RELOADS):
        scope = {"blocking_readers": "tcp", "exclude_ports": [21 + number % 2]}
        host.overrides["scope"] = scope
        host.configure()
        client.call("Reload")
        assert client.get("Scope")["exclude_ports"] == scope["exclude_ports"]
        all_accelerated(client, traffic, f"reload {number + 1}")
