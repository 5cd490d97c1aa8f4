"""The harness over the real kernel: what it calls accelerated is, what it calls plain is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench import blocks, coverage, loads
from bench.datapaths import (
    AGAIN,
    EXCLUDED,
    OURS,
    OUTSIDE,
    RETIRED,
    TCP,
    TEXTBOOK,
    UNIX,
)
from bench.host import Host
from bench.loads import Loads
from bench.workload import measure

DURATION_MS = 10
WARM_UP = 200  # requests before those that rr.c counts


class Counted(Loads):
    """Counts the requests of `rr`. Each has one answer."""

    requests = 0

    def _talk(self, *arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        server, client = super()._talk(*arguments)
        self.requests += WARM_UP + client["operations"]
        return server, client


@pytest.fixture(scope="module")
def host(capable: None) -> Iterator[Host]:
    with ExitStack() as stack:
        yield Host(stack, null=False)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("load")
    loads.build(directory)
    return directory


@pytest.fixture(scope="module")
def load(host: Host, programs: Path) -> Loads:
    return Loads(host, programs, DURATION_MS)


@pytest.mark.parametrize("name", [TCP, OURS, TEXTBOOK, UNIX, EXCLUDED, OUTSIDE, RETIRED])
def test_only_ours_is_redirected_by_ours(host: Host, load: Loads, name: str) -> None:
    """Of what is measured: a connection that is retired has its warm-up redirected."""
    path = host.datapaths[name]
    before = 0

    def change(connections: int) -> None:
        nonlocal before
        if path.change is not None:
            path.change(connections)
        before = host.redirected()

    with path.around():
        sample = load.rr(replace(path, change=change), size=64, pause=True)
        redirected = host.redirected() - before
    assert sample.rate > 0 and sample.server_cpu_us > 0 and sample.client_cpu_us > 0
    if name == OURS:
        assert redirected > 2 * sample.rate * DURATION_MS / 1000 * 0.9
    else:
        assert redirected == 0


@pytest.mark.parametrize("name", [TCP, OURS, TEXTBOOK, UNIX])
@pytest.mark.parametrize("way", ["up", "down", "both"])
def test_streams_arrive_whole(host: Host, load: Loads, name: str, way: str) -> None:
    assert load.stream(host.datapaths[name], size=4096, way=way).rate > 0


def test_several_connections_and_idle_ones(host: Host, load: Loads) -> None:
    assert load.rr(host.datapaths[OURS], size=64, connections=4, idle=20).rate > 0


def test_a_workload_that_is_not_accelerated_is_no_figure(host: Host, load: Loads) -> None:
    (deferred,) = (w for w in load.workloads() if w.name == "crr-deferred")
    measure(deferred, host, 1)
    (short,) = (w for w in load.workloads() if w.name == "crr")
    host.call("Disable")
    with pytest.raises(RuntimeError, match="0 messages were redirected"):
        measure(short, host, 1)
    host.call("Enable")


def test_coverage_is_the_share_of_the_messages_that_is_redirected(
    host: Host, programs: Path
) -> None:
    """Plain TCP's are counted by their data segments: a request each, and an answer."""
    requests: dict[str, int] = {}

    def run(*names: str) -> None:
        for name in names:
            load = Counted(host, programs, DURATION_MS)
            load.rr(host.datapaths[name], size=64)
            requests[name] = load.requests

    assert coverage.measure(host, partial(run, OURS)) > 0.99
    assert coverage.measure(host, partial(run, EXCLUDED)) == 0
    found = coverage.measure(host, partial(run, EXCLUDED, OURS))
    assert found == pytest.approx(requests[OURS] / sum(requests.values()), abs=0.02)


def test_blocks_of_short_connections(host: Host, programs: Path) -> None:
    (echo,) = (w for w in blocks.workloads(host, programs) if w.name == "blocks-echo")
    entry = measure(echo, host, 2)
    assert entry["redirected_messages"] > 0
    for name in (TCP, AGAIN, OURS):
        assert entry["datapaths"][name]["rate"] > 0
        path = host.datapaths[name]
        assert not [p for p in (path.server, path.client) if (p / "cgroup.procs").read_text()]


def test_nothing_is_left(capable: None) -> None:
    with ExitStack() as stack:
        scratch = Host(stack, null=False).scratch
    assert not scratch.exists()
    assert str(scratch) not in Path("/proc/mounts").read_text()
