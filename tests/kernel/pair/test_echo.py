"""Which connections are accelerated, shown by exact counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support import cgroups
from support.processes import inside, outside
from support.traffic import Connection, check_native, connect, dial, echo, listen

ROUNDS = 10_000
PORT_EXCLUDED = 20_023

# (address the client dials, address the server is bound to)
ADDRESSES = {
    "IPv4": ("127.0.0.1", "127.0.0.1"),
    "IPv4, another loopback address": ("127.0.0.9", "127.0.0.9"),
    "IPv6": ("::1", "::1"),
    "mapped client": ("::ffff:127.0.0.1", "127.0.0.1"),
    "mapped server": ("127.0.0.1", "::ffff:127.0.0.1"),
    "server on any": ("127.0.0.1", "::"),
    "IPv6 to server on any": ("::1", "::"),
    "both mapped": ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    "mapped client, server on any": ("::ffff:127.0.0.1", "::"),
}
each_address = pytest.mark.parametrize(("dialled", "bound"), ADDRESSES.values(), ids=ADDRESSES)


def changed(generation: Generation) -> dict[str, int]:
    return {name: value for name, value in generation.counters().items() if value}


@each_address
@inside()
def test_both_ends_inside(cgroup: Path, generation: Generation, dialled: str, bound: str) -> None:
    with listen(bound) as listener:
        both = connect(listener, dialled)
    walked = generation.members.walk()
    assert (walked.entries, walked.connections, walked.leaving) == (2, 1, 0)
    echo(both, ROUNDS)
    assert changed(generation) == {
        "accelerated_connections": 1,
        "redirected_messages": 2 * ROUNDS,
        "redirected_bytes": 2 * ROUNDS * 64,
    }
    both.close()
    assert generation.members.walk().entries == 0


@each_address
@outside()
def test_both_ends_outside(cgroup: Path, generation: Generation, dialled: str, bound: str) -> None:
    with listen(bound) as listener:
        both = connect(listener, dialled)
    echo(both, ROUNDS)
    assert changed(generation) == {}
    assert generation.members.walk().entries == 0


def check_one_sided(generation: Generation, both: Connection) -> None:
    assert generation.members.walk().entries == 0
    echo(both, 100)
    check_native(both.client, both.server)
    check_native(both.server, both.client)
    counters = changed(generation)
    # a socket of our cgroup that meets a peer outside is counted, and left alone
    assert counters.keys() <= {"declined_peer_outside"}
    assert generation.members.walk().entries == 0


@each_address
@outside()
def test_client_inside_only(cgroup: Path, generation: Generation, dialled: str, bound: str) -> None:
    with listen(bound) as listener:
        cgroups.join(cgroup)
        check_one_sided(generation, connect(listener, dialled))


@each_address
@inside()
def test_server_inside_only(
    cgroup: Path, generation: Generation, other_cgroup: Path, dialled: str, bound: str
) -> None:
    with listen(bound) as listener:
        cgroups.join(other_cgroup)
        check_one_sided(generation, connect(listener, dialled))


@pytest.mark.parametrize(
    "generation", [{"excluded_ports": frozenset({PORT_EXCLUDED})}], indirect=True, ids=["excluded"]
)
@each_address
@inside()
def test_excluded_port(cgroup: Path, generation: Generation, dialled: str, bound: str) -> None:
    with listen(bound, PORT_EXCLUDED) as listener:
        both = connect(listener, dialled)
    assert generation.members.walk().entries == 0
    echo(both, ROUNDS)
    assert changed(generation) == {}
    check_native(both.client, both.server)
    check_native(both.server, both.client)


@pytest.mark.parametrize(
    "generation", [{"excluded_ports": frozenset({PORT_EXCLUDED})}], indirect=True, ids=["excluded"]
)
@inside()
def test_client_on_an_excluded_port(cgroup: Path, generation: Generation) -> None:
    """Only the listening port counts."""
    with listen() as listener:
        client = dial(listener, source_port=PORT_EXCLUDED)
        server, _ = listener.accept()
    echo(Connection(client, server), 100)
    assert changed(generation)["redirected_messages"] == 200
