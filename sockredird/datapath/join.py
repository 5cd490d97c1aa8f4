"""Joins live connections: puts both ends of what is established already on the sockhash.

The datapath lists the ends that are in scope (bpf/pair/join.c), and pairs.py finds the pairs. Those
join that carry messages and whose programs poll.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sockredird.datapath.generation import Generation
from sockredird.datapath.pairs import Pair, in_scope, paired
from sockredird.kernel.cgroup import Names
from sockredird.loader.records import CAUSES, SIDES
from sockredird.loader.shapes import CAPACITIES

POLLED_LOOKS = 8  # a program that was not seen to poll for so long sleeps inside recv()
FLOWING = 2  # segments with data between two looks, sent and received by one end
# Seconds before a pair that did not begin, or had to leave, is tried again: once soon, as a busy
# machine may have been the cause; after that doubled each time.
FIRST_RETRY_S, RETRY_S, LONGEST_RETRY_S = 1.0, 10.0, 600.0
MOST_PAIRS = CAPACITIES["JOINING"] // 2


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
        for pair, cause in zip(
            wanted, generation.members.join(wanted) if wanted else (), strict=True
        ):
            if cause != "":  # else the numbers of one end were changing, or it is gone
                self._tried[_key(pair)] = now, self._rest_after(pair), cause or ""
            joined, full = joined + (cause is None), full or cause == "map_full"
            left += _of_pair(pair, cause)
        new = sum(any(end.sk not in self._segments for end in pair.ends) for pair in pairs)
        ends = [end for pair in pairs for end in pair.ends]
        self._segments = {end.sk: end.segments for end in ends}
        self._note(left)
        self.looks, self.eligible, self.joined = self.looks + 1, len(pairs), self.joined + joined
        return Looked(len(pairs), joined, len(left), new, full, time.thread_time() - began)

    def _rest_after(self, pair: Pair) -> float:
        """Seconds that the pair rests after this attempt."""
        if (before := self._tried.get(_key(pair))) is None:
            return FIRST_RETRY_S
        return min(max(2 * before[1], RETRY_S), LONGEST_RETRY_S)

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
