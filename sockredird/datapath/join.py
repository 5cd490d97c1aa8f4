"""Joins live connections: puts both ends of what is established already on the sockhash.

The datapath lists the ends that could be accelerated (bpf/pair/join.c), here they are paired, and
the datapath joins the pairs that carry messages. A pair that is proposed wrongly is not redirected:
the rule at the first message (bpf/carry/begin.h) proves each one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sockredird.datapath.generation import Generation
from sockredird.loader.header import record
from sockredird.loader.records import CAPACITIES, FLOW, ip_bytes

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
    def key(self) -> dict[str, int]:
        """struct pair: each end's initial sequence number + 1, which its peer knows exactly."""
        return {"client_seq": self.server.peer_isn_1, "server_seq": self.client.peer_isn_1}

    @property
    def polls(self) -> bool:
        """Whether both programs poll, rather than sleep inside recv()."""
        return bool(self.client.polls and self.server.polls)

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

    def server_address(self) -> bytes:
        s = self.server
        return record("server_address").pack(ip=s.local_ip, netns=s.netns, port=s.local_port)


@dataclass(frozen=True)
class Looked:
    """What one look came to."""

    eligible: int  # pairs with traffic that could be accelerated
    joined: int
    blocking: int  # of the eligible, those that are left because an end does not poll
    seconds: float  # of processor time that it took


class Joiner:
    """Remembers from look to look which connections carry messages, and which were tried."""

    def __init__(self) -> None:
        self._segments: dict[int, int] = {}  # by end, as of the last look
        self._tried: dict[tuple[int, int], tuple[float, float]] = {}  # when, and how long it rests

    def look(self, generation: Generation, addresses: str) -> Looked:
        """Joins the pairs that have carried messages since the last look. Raises OSError."""
        now, began = time.monotonic(), time.thread_time()
        found = list(generation.candidates())
        pairs = [p for p in paired(found) if in_scope(p, addresses, generation.has_address)]
        busy = [p for p in pairs if self._flows(p.client) and self._flows(p.server)]
        self._segments = {c.sk: c.segments for p in pairs for c in (p.client, p.server)}
        self._tried = {k: v for k, v in self._tried.items() if now - v[0] < 2 * LONGEST_RETRY_S}
        fit = [p for p in busy if p.polls and generation.has_port(p.server.local_port)]
        wanted = [p for p in fit if self._rested(p, now)][:MOST_PAIRS]
        for pair in wanted:
            client_seq, server_seq = pair.key.values()
            _, rest = self._tried.get((client_seq, server_seq), (0.0, RETRY_S / 2))
            self._tried[client_seq, server_seq] = now, min(2 * rest, LONGEST_RETRY_S)
        joined = generation.join(wanted) if wanted else 0
        blocking = sum(1 for p in busy if not p.polls)
        return Looked(len(pairs), joined, blocking, time.thread_time() - began)

    def _rested(self, pair: Pair, now: float) -> bool:
        client_seq, server_seq = pair.key.values()
        tried, rest = self._tried.get((client_seq, server_seq), (0.0, 0.0))
        return now - tried >= rest

    def _flows(self, end: Candidate) -> bool:
        before = self._segments.get(end.sk)
        return before is not None and (end.segments - before) & 0xFFFFFFFF >= FLOWING


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
    done: set[int] = set()
    for end in ends.values():
        mates = [
            mate
            for own in _own_isn(end)
            for mate in by_peer.get(own, [])
            if mate.sk != end.sk and end.peer_isn_1 in _own_isn(mate) and _same_addresses(end, mate)
        ]
        if len(mates) != 1 or end.sk in done or mates[0].sk in done:
            continue
        mate = mates[0]
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
