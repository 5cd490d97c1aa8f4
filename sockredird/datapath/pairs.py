"""The two ends of each live connection, found among all sockets by what TCP has told them.

A pair that is proposed wrongly is not redirected: the rule at the first message
(bpf/carry/begin.h) proves each one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sockredird.loader.header import record
from sockredird.loader.records import FLOW, ip_bytes

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


@lru_cache(maxsize=1024)  # connections are many, and their addresses few
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
