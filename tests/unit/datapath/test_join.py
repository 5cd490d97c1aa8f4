"""Which ends the daemon takes for the two of one connection, of any that there may be.

Connections have few numbers and addresses to choose from, in two network namespaces that are alike,
so that most of what an end shows is another's, too; but no two have both initial sequence numbers.
Some of their ends are not seen, some linger, and some sockets are forged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockredird.datapath.join import Joiner
from sockredird.datapath.pairs import Pair, in_scope, paired
from sockredird.loader.header import record

CANDIDATE = record("candidate")
LOOPBACK, NETNS = "127.0.0.1", (1, 2)
# far from each other: that numbers next to each other are both another's is as likely as that
# both are the same
ISNS = (*range(10_000, 90_000, 10_000), 0xFFFFFFFF)
PORTS = (80, 81, 40_000, 40_001)


def ip(last: int, first: int = 127) -> tuple[int, ...]:
    word = int.from_bytes(bytes([first, 0, 0, last]), "little")
    return 0, 0, 0xFFFF0000, word


def is_guess(number: int) -> bool:
    """Whether it is none of ISNS, nor next to one; after the last number comes 0."""
    return all(2 < (number - isn) % (1 << 32) < (1 << 32) - 2 for isn in ISNS)


@dataclass(frozen=True)
class World:
    candidates: list[Any]
    true: set[frozenset[int]]  # the two `sk` of each connection
    forged: set[int]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    numbers = draw(
        st.lists(
            st.tuples(st.sampled_from(ISNS), st.sampled_from(ISNS)),
            unique_by=lambda both: frozenset(both),
            max_size=12,
        )
    )
    candidates, true = [], set()
    sk = 0

    def end(**values: Any) -> int:
        nonlocal sk
        sk += 1
        raw = CANDIDATE.pack(sk=sk, polls=1, segments=draw(st.integers(0, 9)), **values)
        candidates.append(CANDIDATE.unpack(raw))
        return sk

    for client_isn, server_isn in numbers:
        netns = draw(st.sampled_from(NETNS))
        other = draw(st.sampled_from((netns, *NETNS)))
        ports = draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))
        nat = draw(st.booleans()) and other != netns
        seen = draw(st.sampled_from(("both", "both", "both", "client", "server")))
        ends = set()
        if seen != "server":
            place = {"netns": netns, "local_ip": ip(1), "remote_ip": ip(1)}
            place |= {"local_port": ports[0], "remote_port": ports[1]}
            # of what was acknowledged the SYN is counted
            isns = {"isn_1": client_isn, "peer_isn_1": (server_isn + 1) % (1 << 32)}
            ends.add(end(**place, **isns))
        if seen != "client":
            far = draw(st.sampled_from(PORTS)) if nat else ports[0]
            place = {"netns": other, "local_ip": ip(1), "remote_ip": ip(9, 10) if nat else ip(1)}
            place |= {"local_port": ports[1], "remote_port": far}
            isns = {"isn_1": (server_isn + 1) % (1 << 32)}
            ends.add(end(**place, **isns, peer_isn_1=(client_isn + 1) % (1 << 32)))
        if len(ends) == 2:
            true.add(frozenset(ends))
    forged = set()
    for _ in range(draw(st.integers(0, 4))):  # who knows one number of the two
        place = {"netns": draw(st.sampled_from((*NETNS, 3))), "local_ip": ip(1), "remote_ip": ip(1)}
        place |= {"local_port": draw(st.sampled_from(PORTS)), "remote_port": 80}
        known = draw(st.sampled_from(ISNS))
        guess = draw(st.integers(0, 0xFFFFFFFF).filter(is_guess))
        isns = draw(st.permutations([known, guess]))
        forged.add(end(**place, isn_1=isns[0], peer_isn_1=isns[1]))
    listening = [
        CANDIDATE.unpack(CANDIDATE.pack(sk=1000 + n, netns=n, local_port=80, listens=1))
        for n in NETNS
    ]
    return World(draw(st.permutations([*candidates, *listening])), true, forged)


def ends_of(pairs: list[Pair]) -> list[frozenset[int]]:
    return [frozenset(end.sk for end in pair.ends) for pair in pairs]


@settings(max_examples=500, deadline=None)
@given(worlds())
def test_no_wrong_pair(world: World) -> None:
    found = ends_of(list(paired(world.candidates)))
    assert len(found) == len(set(found))
    assert {pair for pair in found if not pair <= world.forged} <= world.true


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_each_is_found_alone(world: World) -> None:
    """Whatever the numbers are: what is left alone is only so for others that resemble it."""
    for both in world.true:
        alone = [c for c in world.candidates if c.sk in both or c.listens]
        assert ends_of(list(paired(alone))) == [both]


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_a_copy_of_an_end_joins_nothing_with_the_original(world: World) -> None:
    """With both numbers in another namespace: the connection is left alone."""
    for both in world.true:
        copied = next(c for c in world.candidates if c.sk in both)
        copy = copied._replace(sk=5000, netns=77)
        found = ends_of(list(paired([*world.candidates, copy])))
        assert both not in found
        assert not any(5000 in pair for pair in found)


@settings(max_examples=200, deadline=None)
@given(worlds(), st.sampled_from(("loopback", "host", "any")))
def test_scope(world: World, addresses: str) -> None:
    for pair in paired(world.candidates):
        apart = pair.client.netns != pair.server.netns
        if in_scope(pair, addresses, lambda _ip, _netns: True) and addresses != "any":
            assert not apart


class Fake:
    """A generation that says which pairs were to join."""

    def __init__(self, outcome: str | None = None) -> None:
        self.members = self
        self.found: list[Any] = []
        self.wanted: list[Pair] = []
        self.outcome = outcome  # of each attempt to join

    def candidates(self) -> list[Any]:
        return self.found

    def has_port(self, port: int) -> bool:
        return port != 81

    def has_address(self, *_: Any) -> bool:
        return True

    def join(self, pairs: list[Pair]) -> list[str | None]:
        self.wanted += pairs
        return [self.outcome] * len(pairs)


@settings(max_examples=200, deadline=None)
@given(worlds(), st.data())
def test_only_what_carries_messages_and_polls_joins(world: World, data: st.DataObject) -> None:
    generation, joiner = Fake(), Joiner()
    generation.found = [c._replace(polls=data.draw(st.integers(0, 1))) for c in world.candidates]
    assert joiner.look(generation, "any").joined == 0  # type: ignore[arg-type]
    before = {c.sk: c for c in generation.found}
    generation.found = [
        c._replace(segments=c.segments + data.draw(st.integers(0, 3))) for c in generation.found
    ]
    looked = joiner.look(generation, "any")  # type: ignore[arg-type]
    for pair in generation.wanted:
        for end in pair.ends:
            assert end.polls and end.segments - before[end.sk].segments >= 2
        assert pair.server.local_port != 81
    assert looked.joined == len(generation.wanted)
    asleep = [left for left in joiner.left.values() if left.cause == "blocking_reader"]
    assert len(asleep) == len(joiner.left)
    generation.wanted.clear()
    joiner.look(generation, "any")  # type: ignore[arg-type]
    assert not generation.wanted, "idle, or tried a moment ago"


@pytest.mark.parametrize(
    ("outcome", "attempts"),
    [
        (None, [0, 1, 11, 31, 71, 151, 311, 631, 1231, 1831]),  # it had to leave each time
        ("map_full", [0, 1, 11, 31, 71, 151, 311, 631, 1231, 1831]),
        ("", list(range(2000))),  # its numbers changed while they were read
    ],
)
def test_when_it_is_tried_again(outcome: str | None, attempts: list[int]) -> None:
    generation, joiner = Fake(outcome), Joiner()
    client, server = {"local_port": 40_000, "remote_port": 80}, {"local_port": 80}
    isns = {"isn_1": 10, "peer_isn_1": 20}, {"isn_1": 20, "peer_isn_1": 10}
    both = [
        CANDIDATE.unpack(CANDIDATE.pack(sk=sk, polls=1, netns=netns, **port, **isn))
        for sk, netns, port, isn in zip((1, 2), NETNS, (client, server), isns, strict=True)
    ]
    tried = []
    with mock.patch("sockredird.datapath.join.time.monotonic") as now:
        for second in range(-1, 2000):
            now.return_value = 1e6 + second
            generation.found = [c._replace(segments=4 * second + 4) for c in both]
            generation.wanted.clear()
            joiner.look(generation, "any")  # type: ignore[arg-type]
            tried += [second] * len(generation.wanted)
    assert tried == attempts
