"""Each value of `addresses` accelerates just the connections it says, shown by exact counts."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support import cgroups, topology
from support.background import Background
from support.processes import inside, outside
from support.topology import Family
from support.traffic import Connection, check_native, connect, echo, listen, set_linger
from support.waiting import eventually

ROUNDS = 200
IN_SCOPE = {
    "loopback": {"loopback"},
    "host": {"loopback", "one address", "two addresses"},
    "any": topology.ALL.keys() - {"masquerade"},
}
CASES = [
    pytest.param(
        {"addresses": addresses}, name, Family(version), id=f"{addresses}-{name}-IPv{version}"
    )
    for addresses in IN_SCOPE
    for name in topology.ALL
    for version in (4, 6)
]
each_case = pytest.mark.parametrize(
    ("generation", "name", "family"), CASES, indirect=["generation"]
)


def changed(generation: Generation) -> dict[str, int]:
    return {name: value for name, value in generation.counters().items() if value}


def in_scope(name: str, request: pytest.FixtureRequest) -> bool:
    return name in IN_SCOPE[request.node.callspec.params["generation"]["addresses"]]


@each_case
@inside()
def test_each_way(
    cgroup: Path, generation: Generation, name: str, family: Family, request: pytest.FixtureRequest
) -> None:
    network = topology.ALL[name](family)
    with network.client.entered():
        generation.note_addresses()
    both = network.connect()
    if not in_scope(name, request):
        assert generation.members.walk().entries == 0
        check_native(both.client, both.server)
        check_native(both.server, both.client)
        assert changed(generation).keys() <= {"declined_peer_outside", "declined_undecidable"}
        return
    assert generation.members.walk().entries == 2
    echo(both, ROUNDS)
    assert changed(generation) == {
        "accelerated_connections": 1,
        "redirected_messages": 2 * ROUNDS,
        "redirected_bytes": 2 * ROUNDS * 64,
    }
    both.close()
    assert generation.members.walk().entries == 0


any_address = pytest.mark.parametrize("generation", [{"addresses": "any"}], indirect=True, ids=[""])
each_family = pytest.mark.parametrize("family", [Family(4), Family(6)], ids=["IPv4", "IPv6"])


@any_address
@each_family
@inside()
def test_what_cannot_be_decided(cgroup: Path, generation: Generation, family: Family) -> None:
    """The server end knows, by the sequence numbers, what the client end could not."""
    both = topology.masquerade(family).connect()
    assert changed(generation) == {"declined_peer_outside": 1, "declined_undecidable": 1}
    check_native(both.client, both.server)


@any_address
@each_family
@inside()
def test_a_proxy_publishes_a_port(cgroup: Path, generation: Generation, family: Family) -> None:
    """Both of its connections: from a program on the host, and into the container."""
    into = topology.veth(family)
    with into.client.entered(), listen(family.loopback) as published:
        outer = connect(published, family.loopback)
    inner = into.connect()
    through = Connection(outer.client, inner.server)
    with relay(outer.server, inner.client):
        echo(through, ROUNDS)
    assert changed(generation)["accelerated_connections"] == 2
    assert changed(generation)["redirected_messages"] == 4 * ROUNDS


@contextmanager
def relay(one: socket.socket, other: socket.socket) -> Iterator[None]:
    """Passes on whatever comes, a message at a time, until both sides have been shut down."""

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        poll = select.poll()
        poll.register(source, select.POLLIN)
        while poll.poll() and (data := source.recv(1 << 16)):
            target.sendall(data)

    threads = [Background(pass_on, one, other), Background(pass_on, other, one)]
    yield
    for end in (one, other):
        end.shutdown(socket.SHUT_RD)
    for thread in threads:
        thread.join(10)


@pytest.mark.parametrize("generation", [{"addresses": "host"}], indirect=True, ids=["host"])
@inside()
def test_an_address_comes_and_goes(cgroup: Path, generation: Generation) -> None:
    """Between two addresses of the host, which have to be known."""
    network = topology.two_addresses(Family(4))
    assert network.connect() and generation.members.walk().entries == 0
    with network.client.entered():
        generation.note_addresses()
        both = network.connect()
        assert generation.members.walk().entries == 2
        for address in (network.source, network.bound):
            topology.run("ip", "address", "del", f"{address}/24", "dev", "lo")
        generation.note_addresses()
        topology.run("ip", "address", "add", f"{network.source}/24", "dev", "lo")
        topology.run("ip", "address", "add", f"{network.bound}/24", "dev", "lo")
    echo(both, ROUNDS)
    assert generation.counters()["redirected_messages"] == 2 * ROUNDS
    network.connect()
    assert generation.counters()["accelerated_connections"] == 1


# -- ends outside, which stand for other hosts -----------------------------------------------------

OUTSIDE = 10_000
HELD = 200


def is_listed(generation: Generation) -> bool:
    return generation.members.walk().entries > 0


@pytest.mark.parametrize("direction", ["to", "from"])
@any_address
@outside(timeout=300)
def test_peers_outside(
    cgroup: Path, other_cgroup: Path, generation: Generation, direction: str
) -> None:
    network = topology.veth(Family(4))
    cgroups.join(cgroup if direction == "from" else other_cgroup)
    with network.listen() as listener:
        cgroups.join(other_cgroup if direction == "from" else cgroup)
        for _ in range(OUTSIDE // HELD):
            held = []
            for _ in range(HELD):
                client = network.dial()
                held.append(Connection(client, listener.accept()[0]))
            assert not is_listed(generation)
            for both in held:
                echo(both, 1)
            for both in held[1:]:
                # at once: no TIME_WAIT keeps a port
                set_linger(both.client, 0)
                both.close()
            check_native(held[0].client, held[0].server)
            check_native(held[0].server, held[0].client)
            held[0].close()
    assert changed(generation) == {"declined_peer_outside": OUTSIDE}
    assert not is_listed(generation)


SOURCE_PORT = 30_001
SYN_RECV = "03"


def has_answered() -> bool:
    lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[3] == SYN_RECV for line in lines)


@any_address
@pytest.mark.parametrize("first", ["client sends", "server sends", "closes"])
@outside()
def test_an_answer_to_a_namesake(
    cgroup: Path, other_cgroup: Path, generation: Generation, first: str
) -> None:
    """A client outside with the same address and port has its SYN answered, and says no more."""
    family = Family(4)
    inside_network, outside_network, mute = (topology.veth(family) for _ in range(3))
    cgroups.join(cgroup)
    answering = mute.listen()
    cgroups.join(other_cgroup)
    with mute.client.entered():
        topology.run("iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP")
        silent = socket.socket()
    silent.setblocking(False)
    silent.bind((family.address(1, 1), SOURCE_PORT))
    with pytest.raises(BlockingIOError):
        silent.connect((mute.dialled, mute.port))
    with mute.server.entered():
        eventually(has_answered, "the listener has answered the SYN")
    assert changed(generation) == {}
    with outside_network.listen() as listener:
        cgroups.join(cgroup)
        client = outside_network.dial(SOURCE_PORT)
        both = Connection(client, listener.accept()[0])
    # taken for a client whose server end is about to come
    assert generation.members.walk().entries == 1
    if first == "client sends":
        echo(both, 1)
        assert generation.members.retire(10, lambda walked: walked.entries == 0)
    elif first == "server sends":
        echo(Connection(both.server, both.client), 1)
    else:
        both.close()
    assert not is_listed(generation)
    if first != "closes":
        check_native(both.client, both.server)
        check_native(both.server, both.client)
    # its word is used up, and nobody else was taken in by it
    echo(inside_network.connect(), ROUNDS)
    assert changed(generation)["accelerated_connections"] == 1
    assert changed(generation)["redirected_messages"] == 2 * ROUNDS
    answering.close()
