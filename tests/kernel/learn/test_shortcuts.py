"""Most learned listeners are known by their port, without a look-up; which must not show."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from sockredird.datapath.learned import Learned
from sockredird.kernel import libbpf
from sockredird.kernel.addresses import netns_cookie
from sockredird.loader.records import LESSON, LESSON_KINDS, LISTENER, SHORTCUTS
from support import topology
from support.processes import inside
from support.topology import Family
from support.traffic import connect, listen

OPTION = LESSON.pack(1, 1, LESSON_KINDS.index("option"), 0, 0, b"")


def key(listener: socket.socket) -> bytes:
    return LISTENER.pack(netns_cookie(), listener.getsockname()[1])


def left_alone(generation: Generation, listener: socket.socket) -> bool:
    """Whether the next connection to it is."""
    before = generation.counters()
    connect(listener).close()
    after = generation.counters()
    new = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert new in ({"accelerated_connections": 1}, {"declined_learned": 1})
    return "declined_learned" in new


def neighbours() -> tuple[socket.socket, socket.socket]:
    """Listeners whose ports share a place."""
    while True:
        first = listen()
        with suppress(OSError, OverflowError):
            return first, listen(port=first.getsockname()[1] + SHORTCUTS)
        first.close()


@pytest.mark.parametrize("unlearned", [0, 1])
@inside()
def test_ports_that_share_a_place(cgroup: Path, generation: Generation, unlearned: int) -> None:
    listeners = neighbours()
    assert [left_alone(generation, x) for x in listeners] == [False, False]
    generation.teach(key(listeners[0]), OPTION)
    assert [left_alone(generation, x) for x in listeners] == [True, False]
    generation.teach(key(listeners[1]), OPTION)
    assert [left_alone(generation, x) for x in listeners] == [True, True]
    generation.unteach(key(listeners[unlearned]))
    assert [left_alone(generation, x) for x in listeners] == [unlearned != 0, unlearned != 1]
    # if the place is free now, it is taken
    generation.make_shortcut(key(listeners[1 - unlearned]), OPTION)
    assert [left_alone(generation, x) for x in listeners] == [unlearned != 0, unlearned != 1]
    generation.unteach(key(listeners[1 - unlearned]))
    assert [left_alone(generation, x) for x in listeners] == [False, False]


@inside()
def test_the_same_port_in_another_namespace(cgroup: Path, generation: Generation) -> None:
    with listen() as listener:
        elsewhere = LISTENER.pack(netns_cookie() + 1, listener.getsockname()[1])
        generation.teach(elsewhere, OPTION)
        assert not left_alone(generation, listener)
        generation.teach(key(listener), OPTION)
        assert left_alone(generation, listener)


@pytest.mark.parametrize("generation", [{"addresses": "any"}], indirect=True, ids=["any"])
@inside()
def test_a_listener_of_another_namespace(cgroup: Path, generation: Generation) -> None:
    """What was learned of that port in the client's says nothing of it."""
    network = topology.veth(Family(4))
    with network.client.entered():
        here = LISTENER.pack(netns_cookie(), topology.PORT)
    with network.server.entered():
        there = LISTENER.pack(netns_cookie(), topology.PORT)
    generation.teach(here, OPTION)
    with network.client.entered(), listen(port=topology.PORT) as listener:
        assert left_alone(generation, listener)
    network.connect()
    assert generation.counters()["accelerated_connections"] == 1
    generation.teach(there, OPTION)
    network.connect()
    assert generation.counters()["accelerated_connections"] == 1


@inside()
def test_the_daemon_makes_and_closes_them(
    cgroup: Path, generation: Generation, tmp_path: Path
) -> None:
    """A listener taken off the list behind its back is left alone for want of a look-up."""
    learned = Learned(tmp_path / "learned.json")
    with listen() as known, listen() as looked_up:
        for listener in (known, looked_up):
            libbpf.update(generation._pins["learned"], key(listener), OPTION)
        learned.sync(generation)
        generation.close_shortcut(key(looked_up))
        assert [left_alone(generation, x) for x in (known, looked_up)] == [True, True]
        for listener in (known, looked_up):
            libbpf.delete(generation._pins["learned"], key(listener))
        assert [left_alone(generation, x) for x in (known, looked_up)] == [True, False]
        learned.sync(generation)
        assert [left_alone(generation, x) for x in (known, looked_up)] == [False, False]
