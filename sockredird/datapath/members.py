"""The members of a sockhash: how sockets that are established get on it, and how they leave.

Handshakes put members there by themselves (bpf/pair/pair.c), and most leave inside a call of their
program. The rest is done while the daemon has an iterator visit all of them: the programs in
bpf/pair/join.c and bpf/leave/walk.c.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sockredird.datapath import visits
from sockredird.datapath.pairs import Pair
from sockredird.datapath.settings import LiveSettings, begin_request
from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.loader.header import record
from sockredird.loader.records import CAUSES, FLOW, REQUEST_WALK, Flow

SHOWS_S = 0.004  # more than SHOWS_WITHIN_MS of leave/walk.c
REST = 10  # walks begin no sooner after the last ones than this times what those took
LONGEST_PAUSE_S = 0.05  # walks are no further apart while all pairs of a generation leave
NEARLY_FULL = 7 / 8  # of the sockhash: from there on idle pairs have to leave
ROOM_PAIRS = 1024  # that one walk may begin to take off; CAPACITIES has room for those of many
_ZERO = bytes(4)


@dataclass(frozen=True)
class Walked:
    """What one walk over the sockhash met."""

    entries: int
    connections: int
    leaving: int
    broken: frozenset[tuple[bytes, int]] = frozenset()  # struct flow and side of the end to reset
    unsettled: int = 0  # directions that the next walk has to look at again


class Members:
    """Those of one generation. All methods block, and raise OSError."""

    def __init__(self, pins: Mapping[str, Fd], settings: LiveSettings) -> None:
        self._pins = pins
        self._settings = settings
        self.capacity = int(libbpf.map_info(pins["peers"]).max_entries)  # two per connection
        self.walk_seconds = 0.0  # of processor time that the last walk took

    def join(self, pairs: Sequence[Pair]) -> list[str | None]:
        """Puts both ends of these connections on the sockhash.

        For each pair None if that is done, or the cause why not, which is empty if one end is gone.
        A pair with one end that could not be put there is taken off again: nothing was redirected
        to that end, as its peer was not there.
        """
        for pair in pairs:
            self._propose(pair)
        causes: dict[int, str] = {}
        for chunk in libbpf.iterate(self._pins["join"]):
            for result in record("joined").iter_unpack(chunk):
                # once an end is there, the next process that has it open finds it on a sockmap
                causes.setdefault(result.sk, CAUSES[result.cause])
        joined = {sk for sk, cause in causes.items() if not cause}
        outcomes: list[str | None] = []
        for pair in pairs:
            ends = [end.sk for end in pair.ends]
            self._end_proposal(pair)
            if joined.issuperset(ends):
                outcomes.append(None)
            else:
                self._take_off(pair, joined)
                outcomes.append(next((causes[sk] for sk in ends if causes.get(sk)), ""))
        return outcomes

    def _propose(self, pair: Pair) -> None:
        """Stores what bpf/pair/join.c needs of a pair when it comes to its sockets."""
        key = record("pair").pack(**pair.key)
        client, server = pair.ends
        handshake = record("handshake").pack(
            flow=pair.flow(), client_sk=client.sk, server_sk=server.sk
        )
        libbpf.update(self._pins["handshakes"], key, handshake)
        for side, end in enumerate(pair.ends):
            value = record("joining").pack(
                pair=key, side=side, flow=pair.flow(), server=pair.server_address()
            )
            libbpf.update(self._pins["joining"], _key_of(end.sk), value)

    def _end_proposal(self, pair: Pair) -> None:
        for end in pair.ends:
            with suppress(FileNotFoundError):
                libbpf.delete(self._pins["joining"], _key_of(end.sk))

    def _take_off(self, pair: Pair, joined: Set[int]) -> None:
        """Takes the end that has joined without its peer off the sockhash again."""
        key = record("pair").pack(**pair.key)
        for side, end in enumerate(pair.ends):
            if end.sk in joined:
                with suppress(FileNotFoundError):
                    libbpf.delete(self._pins["peers"], record("end").pack(pair=key, side=side))
        with suppress(FileNotFoundError):
            libbpf.delete(self._pins["handshakes"], key)

    def _visit(self, *, recounts: bool = False) -> Iterator[Any]:
        """Visits every socket on the sockhash: a struct member for each that has to leave.

        In a generation that is stopped these are all. What it counts is left in the map `walked`.
        `recounts`: what _begin_recount() returned.
        """
        number = (self._walked().number + 1) & 0xFFFFFFFF or 1
        walked = record("walked").pack(number=number, recounts=int(recounts))
        libbpf.update(self._pins["walked"], _ZERO, walked)
        begin_request(self._pins["requested"], REQUEST_WALK)
        member = record("member")
        for chunk in visits.visit(self._pins, member.size):
            yield from member.iter_unpack(chunk)

    def _walked(self) -> Any:
        """The struct walked of the last walk."""
        walked = record("walked")
        return walked.unpack(libbpf.lookup(self._pins["walked"], _ZERO, walked.size))

    def purge(self, connections: Set[Flow]) -> None:
        """Takes connections that were reset off the sockhash, with what they have unread.

        Otherwise a reset socket, and so the generation, which is stopped, would stay until its
        program closes it.
        """
        members = list(self._visit())
        pairs = {member.self.pair for member in members if Flow.of(member.flow) in connections}
        for member in members:
            if member.self.pair in pairs:
                with suppress(OSError):  # it has gone
                    libbpf.delete(self._pins["peers"], record("end").pack(**member.self._asdict()))

    def walk(self) -> Walked:
        """Visits every socket on the sockhash and takes the retirements one step further."""
        started = time.thread_time()
        recounts = self._begin_recount()
        if self._settings.now.make_room:
            self._settings.set()  # the walk before has counted it down
        leaving = list(self._visit(recounts=recounts))
        found = self._walked()
        if found.to_wake:
            self._rewake()
        entries = found.staying + len(leaving)
        fills = self._make_room(entries)
        self.walk_seconds = time.thread_time() - started
        return Walked(
            entries=entries,
            connections=found.connections,
            leaving=len(leaving),
            broken=frozenset(
                (FLOW.pack(**m.flow._asdict()), m.self.side) for m in leaving if m.broken
            ),
            unsettled=fills + found.unsettled,
        )

    def _make_room(self, entries: int) -> bool:
        """Has later walks take idle pairs off a sockhash that is nearly full.

        Returns whether the next one is the first to do so.
        """
        room = ROOM_PAIRS if entries > NEARLY_FULL * self.capacity else 0
        if bool(room) == bool(self._settings.now.make_room):
            return False
        self._settings.set(make_room=room)
        return bool(room)

    def _begin_recount(self) -> bool:
        """Whether what is charged for unread data is to be counted anew, from nothing.

        Connections that are idle, or have ended unseen, hold more of the budget than they need.
        With another number of grants each sender asks for a new one before its next message; what
        the others have unread is counted by the walk that follows.
        """
        unread = record("unread_memory")
        found = unread.unpack(libbpf.lookup(self._pins["unread_memory"], _ZERO, unread.size))
        now, grants = self._settings.now, (self._settings.now.grants + 1) & 0xFFFFFFFF
        if not found.recount and found.charged[now.grants & 1] < now.memory_bytes // 2:
            return False
        libbpf.update(self._pins["unread_memory"], _ZERO, bytes(unread.size))
        for cgroup in list(libbpf.keys(self._pins["cgroup_memory"], 8)):
            with suppress(FileNotFoundError):
                libbpf.delete(self._pins["cgroup_memory"], cgroup)
        self._settings.set(grants=grants)
        return True

    def _rewake(self) -> None:
        """Wakes pollers of sockets that left with unread data, see leave/rewake.c."""
        for _ in libbpf.iterate(self._pins["rewake"]):
            pass

    def retire(self, timeout: float, done: Callable[[Walked], bool]) -> bool:
        """Walks, at least once, and for at most `timeout` seconds. Returns whether `done` was.

        The kernel tells nobody when a reader has drained its queue, so this has to look. Pairs that
        leave are looked at again after a grace period; but a pair that a guard refused may leave at
        once, and one whose reader may block soon after.
        """
        deadline = time.monotonic() + timeout
        stopped = leaving = bool(self._settings.now.stopped)
        shown, pause = stopped, 0.00025
        while True:
            if leaving:
                libbpf.wait_for_programs()
                self._settings.set(epoch=self._settings.now.epoch + 1)
            walked = self.walk()
            if done(walked):
                return True
            if walked.unsettled and not shown:
                shown = True
                time.sleep(SHOWS_S)
                continue
            if leaving or not walked.leaving:
                pause = min(2 * pause, LONGEST_PAUSE_S)
                rest = max(pause, REST * self.walk_seconds)
                if stopped:
                    rest = min(rest, LONGEST_PAUSE_S)
                if time.monotonic() + rest > deadline:
                    return False
                time.sleep(rest)
            leaving = walked.leaving > 0


def _key_of(sk: int) -> bytes:
    """The address of a struct sock, as a key of the map joining."""
    return sk.to_bytes(8, sys.byteorder)
