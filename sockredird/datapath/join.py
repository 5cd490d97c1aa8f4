"""Joins live connections: puts both ends of what is established already on the sockhash.

The datapath lists the ends that are in scope (bpf/pair/join.c), here they are paired, and the
datapath joins the pairs that carry messages. A pair that is proposed wrongly is not redirected: the
rule at the first message (bpf/carry/begin.h) proves each one.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sockredird.datapath.generation import Generation
from sockredird.kernel.cgroup import Names
from sockredird.loader.header import record
from sockredird.loader.records import CAPACITIES, CAUSES, FLOW, SIDES, ip_bytes

POLLED_LOOKS = 8  # a program that was not seen to poll for so long sleeps inside recv()
FLOWING = 2  # segments with data between two looks, sent and received by one end
# Seconds before a pair that did not begin, or had to leave, is tried again; doubled each time.
RETRY_S, LONGEST_RETRY_S = 10.0, 600.0
MOST_PAIRS = CAPACITIES["JOINING"] // 2
_LOOPBACK4 = 127

Candidate = Any  # struct candidate, as header.Record unpacks it


@dataclass(frozen=True)
class Pair:
    client: Candidate
    server: Candidate

    @property
    def ends(self) -> tuple[Candidate, Candidate]:
        """By enum side."""
        return self.client, self.server

    @property
    def key(self) -> dict[str, int]:
        """struct pair: each end's initial sequence number + 1, which its peer knows exactly."""
        return {"client_seq": self.server.peer_isn_1, "server_seq": self.client.peer_isn_1}

    def flow(self) -> bytes:
        """struct flow, as the client sees it."""
        c = self.client
        return FLOW.pack(
            client_ip=c.local_ip,
            server_ip=c.remote_ip,
            netns=c.netns,
            client_port=c.local_port,
            server_port=c.remote_port,
        )

    def flow_at_server(self) -> bytes:
        """As the server sees it, which differs behind NAT or in another network namespace."""
        s = self.server
        return FLOW.pack(
            client_ip=s.remote_ip,
            server_ip=s.local_ip,
            netns=s.netns,
            client_port=s.remote_port,
            server_port=s.local_port,
        )

    def server_address(self) -> bytes:
        s = self.server
        return record("server_address").pack(ip=s.local_ip, netns=s.netns, port=s.local_port)


@dataclass(frozen=True)
class Left:
    """Why a connection that carries messages stays on TCP, and at which of its ends."""

    cause: str
    side: str
    cgroup: int  # the id of that end's cgroup


@dataclass(frozen=True)
class Looked:
    """What one look came to."""

    eligible: int  # pairs with traffic that are in scope
    joined: int
    left: int  # of the eligible, those that stay on TCP for a cause
    new: int  # of the eligible; whether they carry messages is known at the next look
    full: bool  # there was no room for one
    seconds: float  # of processor time that it took


class Joiner:
    """Remembers from look to look which connections carry messages, and which were tried."""

    def __init__(self) -> None:
        self.looks = 0
        self.eligible = 0  # at the last look
        self.joined = 0  # in all looks
        self.left: dict[bytes, Left] = {}  # at the last look, by struct flow as each end sees it
        self.summary: list[dict[str, Any]] = []  # of that: unit, reason, connections
        self._units: dict[int, str] = {}  # by id of the cgroup
        self._segments: dict[int, int] = {}  # by end, as of the last look
        self._polled: dict[int, int] = {}  # by end: the number of the last look that saw it poll
        # by struct pair: when, how long it rests, and the cause for which it could not join
        self._tried: dict[tuple[int, ...], tuple[float, float, str]] = {}

    def look(self, generation: Generation, addresses: str) -> Looked:
        """Joins the pairs that have carried messages since the last look. Raises OSError."""
        now, began = time.monotonic(), time.thread_time()
        found = list(generation.candidates())
        recent = {sk: n for sk, n in self._polled.items() if self.looks - n < POLLED_LOOKS}
        self._polled = recent | {c.sk: self.looks for c in found if c.polls}
        pairs = [
            p
            for p in paired(found)
            if generation.has_port(p.server.local_port)
            and in_scope(p, addresses, generation.has_address)
        ]
        self._tried = {k: v for k, v in self._tried.items() if now - v[0] < 2 * LONGEST_RETRY_S}
        joined, full = 0, False
        left: list[tuple[Pair, Left]] = []
        wanted: list[Pair] = []
        for pair in filter(self._flows, pairs):
            tried, rest, before = self._tried.get(_key(pair), (0.0, 0.0, ""))
            if reason := self._unfit(pair):
                left.append((pair, reason))
            elif now - tried < rest:
                left += _of_pair(pair, before)
            elif len(wanted) < MOST_PAIRS:
                wanted.append(pair)
        for pair, cause in zip(wanted, generation.join(wanted) if wanted else (), strict=True):
            _, rest, _ = self._tried.get(_key(pair), (0.0, RETRY_S / 2, ""))
            self._tried[_key(pair)] = now, min(2 * rest, LONGEST_RETRY_S), cause or ""
            joined, full = joined + (cause is None), full or cause == "map_full"
            left += _of_pair(pair, cause)
        new = sum(any(end.sk not in self._segments for end in pair.ends) for pair in pairs)
        ends = [end for pair in pairs for end in pair.ends]
        self._segments = {end.sk: end.segments for end in ends}
        self._note(left)
        self.looks, self.eligible, self.joined = self.looks + 1, len(pairs), self.joined + joined
        return Looked(len(pairs), joined, len(left), new, full, time.thread_time() - began)

    def _flows(self, pair: Pair) -> bool:
        """Whether each end has carried messages since the last look."""
        return all(
            end.sk in self._segments
            and (end.segments - self._segments[end.sk]) & 0xFFFFFFFF >= FLOWING
            for end in pair.ends
        )

    def _unfit(self, pair: Pair) -> Left | None:
        """Why the pair cannot join now.

        Where two programs take turns, only one of them polls at any moment. So an end counts as one
        that polls if it was seen to poll at one of the last looks.
        """
        for side, end in zip(SIDES, pair.ends, strict=True):
            if end.cause:
                return Left(CAUSES[end.cause], side, end.cgroup)
        for side, end in reversed(list(zip(SIDES, pair.ends, strict=True))):
            if end.sk not in self._polled:
                return Left("blocking_reader", side, end.cgroup)
        return None

    def _note(self, left: list[tuple[Pair, Left]]) -> None:
        if any(reason.cgroup not in self._units for _, reason in left):
            names = Names()
            self._units = {
                number: names.unit(number) or names.path(number)
                for number in {reason.cgroup for _, reason in left}
            }
        counts = Counter((self._units[reason.cgroup], reason.cause) for _, reason in left)
        self.left = {
            flow: reason for pair, reason in left for flow in (pair.flow(), pair.flow_at_server())
        }
        self.summary = [
            {"unit": unit, "reason": cause, "connections": count}
            for (unit, cause), count in counts.most_common()
        ]


def _of_pair(pair: Pair, cause: str | None) -> list[tuple[Pair, Left]]:
    return [(pair, Left(cause, SIDES[1], pair.server.cgroup))] if cause else []


def _key(pair: Pair) -> tuple[int, ...]:
    return tuple(pair.key.values())


def paired(candidates: list[Candidate]) -> Iterator[Pair]:
    """The connections that have both ends there, each once.

    Each end knows its peer's initial sequence number exactly, and its own but for the SYN. Each
    descriptor of a socket gives a line, so lines repeat.
    """
    listening = {(c.netns, c.local_port) for c in candidates if c.listens}
    ends = {c.sk: c for c in candidates if not c.listens}
    by_peer: dict[int, list[Candidate]] = defaultdict(list)
    for end in ends.values():
        by_peer[end.peer_isn_1].append(end)
    mates = {
        end.sk: [
            mate
            for own in _own_isn(end)
            for mate in by_peer.get(own, [])
            if mate.sk != end.sk and end.peer_isn_1 in _own_isn(mate) and _same_addresses(end, mate)
        ]
        for end in ends.values()
    }
    done: set[int] = set()
    for end in ends.values():
        # of several that fit, as somebody has copied one, none is taken
        if end.sk in done or len(mates[end.sk]) != 1 or len(mates[mates[end.sk][0].sk]) != 1:
            continue
        (mate,) = mates[end.sk]
        done |= {end.sk, mate.sk}
        serves = (end.netns, end.local_port) in listening
        if serves == ((mate.netns, mate.local_port) in listening):
            serves = end.local_port < mate.local_port  # the listener is gone, so this is a guess
        yield Pair(mate, end) if serves else Pair(end, mate)


def _own_isn(end: Candidate) -> tuple[int, int]:
    """What the initial sequence number can be: bytes_acked counts the SYN of a client only."""
    return end.isn_1, (end.isn_1 + 1) & 0xFFFFFFFF


def _same_addresses(end: Candidate, mate: Candidate) -> bool:
    """In one network namespace the ends mirror each other, unless NAT is at work there."""
    if end.netns != mate.netns:
        return True
    return _mirrored(end, mate) or not (_is_loopback(end.local_ip) and _is_loopback(mate.local_ip))


def _mirrored(end: Candidate, mate: Candidate) -> bool:
    here = end.local_ip, end.local_port, end.remote_ip, end.remote_port
    return bool(here == (mate.remote_ip, mate.remote_port, mate.local_ip, mate.local_port))


def _is_loopback(ip: tuple[int, ...]) -> bool:
    raw = ip_bytes(ip)
    return raw == bytes(15) + b"\1" or raw[10:13] == bytes([0xFF, 0xFF, _LOOPBACK4])


def in_scope(pair: Pair, addresses: str, is_own: Any) -> bool:
    """As bpf/pair/scope.h decides by the addresses; `is_own` knows those of the daemon's netns."""
    if addresses == "any":
        return True
    if pair.client.netns != pair.server.netns or not _mirrored(pair.client, pair.server):
        return False
    ends = pair.client.local_ip, pair.server.local_ip
    if all(_is_loopback(ip) for ip in ends):
        return True
    same = ends[0] == ends[1]
    return addresses == "host" and (same or all(is_own(ip, pair.client.netns) for ip in ends))
