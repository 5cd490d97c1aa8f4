"""What becomes of a pair that had to go to TCP behind unread data: it depends on the kernel.

Where FIONREAD leaves out TCP's data on a member of a sockhash, the pair retires. Elsewhere the
direction pauses, and a reader at the border is woken again (bpf/carry/redirect.c: force_to_tcp()).
"""

from __future__ import annotations

from collections.abc import Mapping

from sockredird.datapath.generation import Generation
from support.emulated import PATIENCE
from support.kernel_facts import FIONREAD_OMITS_TCP
from support.traffic import Connection, check_native, echo

RETIRES = FIONREAD_OMITS_TCP
ROUNDS = 100
BY_TCP = 10  # of them, until a direction has begun again


def forced(counters: Mapping[str, int], cause: str) -> int:
    """How often this kernel's way was gone for that cause."""
    if RETIRES:
        return counters[f"retired_{cause}"]
    assert counters[f"retired_{cause}"] == 0
    return counters[f"paused_{cause}"]


def check_it_goes_on(generation: Generation, both: Connection, cause: str) -> None:
    """Its readers have read everything: the pair is native, or redirected again."""
    if RETIRES:
        assert generation.retire(10 * PATIENCE, lambda walked: walked.entries == 0)
    else:
        # no reader is at a border any more
        assert generation.retire(10 * PATIENCE, lambda walked: walked.unsettled == 0)
        assert generation.walk().connections == 1
    assert forced(generation.counters(), cause) >= 1
    before = generation.counters()["redirected_messages"]
    if RETIRES:
        check_native(both.client, both.server)
        check_native(both.server, both.client)
    echo(both, ROUNDS)
    redirected = generation.counters()["redirected_messages"] - before
    assert redirected == 0 if RETIRES else redirected >= 2 * ROUNDS - BY_TCP
