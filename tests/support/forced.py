"""What becomes of a pair that had to go to TCP behind unread data.

The direction pauses, and a reader at the border is woken again (bpf/carry/redirect.c:
force_to_tcp()).
"""

from __future__ import annotations

from collections.abc import Mapping

from sockredird.datapath.generation import Generation
from support.emulated import PATIENCE
from support.traffic import Connection, echo

ROUNDS = 100
BY_TCP = 10  # of them, until a direction has begun again


def left(counters: Mapping[str, int]) -> int:
    """Connections that were retired, for whatever cause."""
    return sum(count for name, count in counters.items() if name.startswith("retired_"))


def forced(counters: Mapping[str, int], cause: str) -> int:
    """How often a direction paused for that cause; no pair left."""
    assert left(counters) == 0
    return counters[f"paused_{cause}"]


def check_it_goes_on(generation: Generation, both: Connection, cause: str) -> None:
    """Its readers have read everything: the pair is redirected again."""
    # no reader is at a border any more
    assert generation.members.retire(10 * PATIENCE, lambda walked: walked.unsettled == 0)
    assert generation.members.walk().connections == 1
    assert forced(generation.counters(), cause) >= 1
    before = generation.counters()["redirected_messages"]
    echo(both, ROUNDS)
    redirected = generation.counters()["redirected_messages"] - before
    assert redirected >= 2 * ROUNDS - BY_TCP
