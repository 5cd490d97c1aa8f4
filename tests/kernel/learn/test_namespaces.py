"""A listener that was learned is known by its port and its network namespace."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from sockredird.kernel.addresses import netns_cookie
from sockredird.loader.header import record
from sockredird.loader.records import CAUSES, listener_key
from support import topology
from support.processes import inside
from support.topology import Family
from support.traffic import connect, listen

OPTION = record("learned_entry").pack(time=1, cause=CAUSES.index("option"))


def left_alone(generation: Generation, listener: socket.socket) -> bool:
    """Whether the next connection to it is."""
    before = generation.counters()
    connect(listener).close()
    after = generation.counters()
    new = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert new in ({"accelerated_connections": 1}, {"declined_learned": 1})
    return "declined_learned" in new


@inside()
def test_the_same_port_in_another_namespace(cgroup: Path, generation: Generation) -> None:
    with listen() as listener:
        port = listener.getsockname()[1]
        generation.add_learned(listener_key(netns_cookie() + 1, port), OPTION)
        assert not left_alone(generation, listener)
        generation.add_learned(listener_key(netns_cookie(), port), OPTION)
        assert left_alone(generation, listener)
        generation.remove_learned(listener_key(netns_cookie(), port))
        assert not left_alone(generation, listener)


@pytest.mark.parametrize("generation", [{"addresses": "any"}], indirect=True, ids=["any"])
@inside()
def test_a_listener_of_another_namespace(cgroup: Path, generation: Generation) -> None:
    """A learned listener on that port in the client's namespace does not concern it."""
    network = topology.veth(Family(4))
    with network.client.entered():
        here = listener_key(netns_cookie(), topology.PORT)
    with network.server.entered():
        there = listener_key(netns_cookie(), topology.PORT)
    generation.add_learned(here, OPTION)
    with network.client.entered(), listen(port=topology.PORT) as listener:
        assert left_alone(generation, listener)
    network.connect()
    assert generation.counters()["accelerated_connections"] == 1
    generation.add_learned(there, OPTION)
    network.connect()
    assert generation.counters()["accelerated_connections"] == 1
