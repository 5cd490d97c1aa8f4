"""The behaviours between network namespaces and through DNAT, where addresses = "any" reaches.

Each on one end of one pair only, another one for each behaviour: that it does the same in all
states is what test_behaviours.py shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.conformance import differences, places
from kernel.conformance.behaviours import ALL
from kernel.conformance.catalogue import JOINED, Behaviour
from kernel.conformance.places import Accelerated, Plain
from kernel.conformance.runner import ENDED, run
from sockredird.datapath.generation import Generation
from support import cgroups, namespaces, topology
from support.datapath import plan, tear_down
from support.topology import Family, Network

LEFT_OUT = {
    "eof_after_data",  # needs the buffers that loopback's packets of 64 KiB lead to
    # Stops half way now and then: pollers can be told in the namespace of the daemon only
    # (bpf/leave/rewake.c); sockredird(8), LIMITATIONS.
    "read_much_by_events_and_fionread",
    # TCP does not keep messages of threads whole that have to wait for room, as they do here.
    "threads_send",
    # take SO_REUSEADDR from the server's port, which is always the same here
    "repair",
    "repair_sequence",
}
# Least, at first, most, see tcp(7). With the usual ones a message of half a MiB goes by TCP where
# packets are small (bpf/carry/bounds.h: backlog_limit()); a large send() consists of such messages.
RECEIVE_BUFFERS = "4096 1048576 6291456"
ON_A_PAIR = [
    (number, behaviour)
    for number, behaviour in enumerate(ALL)
    if behaviour.pair and behaviour.name not in LEFT_OUT
]


@pytest.fixture(scope="module", params=["veth", "published port"])
def network(capable: None, request: pytest.FixtureRequest) -> Network:
    network = topology.ALL[request.param](Family(4))
    for end in (network.client, network.server):
        with end.entered():
            namespaces.sysctl("net.ipv4.tcp_rmem", RECEIVE_BUFFERS)
    return network


@pytest.fixture(scope="module")
def plain(network: Network) -> Iterator[Plain]:
    cgroup = cgroups.create()
    yield Plain(cgroup, network.connect)
    cgroups.remove(cgroup)


@pytest.fixture(scope="module")
def accelerated(bpffs: Path, network: Network) -> Iterator[Accelerated]:
    cgroup = cgroups.create()
    generation = Generation.create(bpffs / "networks", 1, plan(cgroup, addresses="any"))
    with places.accelerated(cgroup, generation, network.connect) as place:
        yield place
    cgroups.empty(cgroup)
    generation.close()
    tear_down(generation.directory)
    cgroups.remove(cgroup)


@pytest.mark.parametrize(
    ("number", "behaviour"), ON_A_PAIR, ids=[behaviour.name for _, behaviour in ON_A_PAIR]
)
def test_as_plain_tcp(
    number: int, behaviour: Behaviour, plain: Plain, accelerated: Accelerated
) -> None:
    variants = [v for v in behaviour.variants if v.state != JOINED]  # as where they are one netns
    variant = variants[number % len(variants)]
    wanted, found = (run(behaviour, variant, place) for place in (plain, accelerated))
    assert ENDED not in wanted, f"{variant}, plain TCP: {wanted}"
    known = differences.expected(behaviour, accelerated.kernel) & {str(variant)}
    differing = {str(variant)} if wanted != found else set()
    assert differences.agrees(differing, known, accelerated.kernel), json.dumps(
        [wanted, found], indent=1
    )
