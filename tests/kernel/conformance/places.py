"""Where a behaviour is run: on plain TCP, on our datapath, or on the textbook's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel.conformance import differences
from kernel.conformance.catalogue import FRESH, JOINED, LEFT, USED
from sockredird.datapath.generation import Generation
from sockredird.datapath.join import Joiner
from sockredird.datapath.members import Walked
from sockredird.kernel.ringbuf import RingBuffers
from sockredird.observe import listing
from support.leaving import have_all_leave
from support.traffic import Connection, connect, listen

SLICE_S = 0.05
RETIRE_S = 10.0
REDIRECTED = ["redirected", "redirected"]
MODES = {FRESH: ["tcp", "tcp"], USED: REDIRECTED, LEFT: [], JOINED: REDIRECTED}


Connect = Callable[[], Connection]


def over_loopback() -> Connection:
    with listen() as listener:
        return connect(listener)


class Plain:
    """Nothing is attached to this cgroup: what TCP does is what is right."""

    accelerates = False

    def __init__(self, cgroup: Path, connect: Connect = over_loopback) -> None:
        """`connect` makes the connection that a behaviour acts on."""
        self.cgroup = cgroup
        self.connect = connect

    def prepare(self) -> None:
        """What was learned of earlier behaviours is forgotten."""

    def wakes(self) -> list[int]:
        """Descriptors that are readable when serve() has something to do."""
        return []

    def serve(self) -> bool:
        """Does what a daemon does; whether it has to be called again soon."""
        return False

    def leave(self) -> None:
        """Takes what is accelerated off the sockhash."""

    def look(self) -> int:
        """Joins live connections that have carried messages since the last look; how many."""
        return 0

    def figures(self) -> tuple[int, int]:
        """Accelerated connections and redirected messages so far."""
        return 0, 0

    def seen(self) -> bool:
        """Whether a program did what makes the guard keep all messages on TCP from then on."""
        return False

    def missing(self, state: str, port: int) -> str:
        """How the connection with this client port is not accelerated as its state demands."""
        return ""


def nothing_to_do(walked: Walked) -> bool:
    """Nothing leaves, and no reader has to be woken once more."""
    return walked.leaving == 0 and walked.unsettled == 0


class Accelerated(Plain):
    """Our datapath, and a stand-in for the daemon that waits for its requests."""

    accelerates = True

    def __init__(
        self, cgroup: Path, generation: Generation, connect: Connect = over_loopback
    ) -> None:
        super().__init__(cgroup, connect)
        self.kernel = differences.running(generation)
        self._generation = generation
        self._joiner = Joiner()
        self._rings = RingBuffers()
        self._rings.add(generation.requests, lambda _record: None)

    def prepare(self) -> None:
        # or a listener that has the same port by chance would be left alone
        for listener, _entry in list(self._generation.learned()):
            self._generation.remove_learned(listener)

    def wakes(self) -> list[int]:
        return [self._rings.fileno()]

    def serve(self) -> bool:
        self._rings.consume()
        return not self._generation.members.retire(SLICE_S, nothing_to_do)

    def leave(self) -> None:
        have_all_leave(self._generation)
        left = self._generation.members.retire(RETIRE_S, nothing_to_do)
        assert left, f"pairs do not leave the sockhash: {self._generation.members.walk()}"

    def look(self) -> int:
        return self._joiner.look(self._generation, "any").joined

    def figures(self) -> tuple[int, int]:
        counters = self._generation.counters()
        return counters["accelerated_connections"], counters["redirected_messages"]

    def seen(self) -> bool:
        return any(True for _entry in self._generation.learned())

    def missing(self, state: str, port: int) -> str:
        found = listing.busiest([self._generation], 2, listing.Query(port=port))
        modes = [end[f"{side}_mode"] for end in found for side in ("client", "server")]
        return "" if modes == MODES[state] else f"a {state} pair is on the sockhash as {modes}"

    def close(self) -> None:
        self._rings.close()


class Textbook(Plain):
    """Does not count: that both ends are members has to do."""

    accelerates = True
    _KEY = 16  # struct tuple of textbook.c

    def __init__(self, cgroup: Path, members: int) -> None:
        super().__init__(cgroup)
        self._members = members

    def missing(self, state: str, port: int) -> str:
        ends = sum(port in key[2:] for key in self._keys())
        return "" if ends == 2 else f"{ends} ends of the pair are on the sockhash"

    def _keys(self) -> Iterator[tuple[int, ...]]:
        libbpf = ctypes.CDLL("libbpf.so.1")
        before, after = None, ctypes.create_string_buffer(self._KEY)
        while libbpf.bpf_map_get_next_key(self._members, before, after) == 0:
            yield tuple(memoryview(after.raw).cast("I"))
            before = ctypes.create_string_buffer(after.raw, self._KEY)


@contextmanager
def accelerated(
    cgroup: Path, generation: Generation, connect: Connect = over_loopback
) -> Iterator[Accelerated]:
    place = Accelerated(cgroup, generation, connect)
    try:
        yield place
    finally:
        place.close()
