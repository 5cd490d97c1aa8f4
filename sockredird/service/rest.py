"""How long the daemon rests between walks."""

from __future__ import annotations

from sockredird.datapath.members import REST

SHARE = 40  # walks asked for again and again take no more than one part in so many of the time
CREDIT_S = 3.0  # how much of the time before the daemon has not walked counts for that
# How long a reader may wait to be woken (bpf/leave/rewake.c), unless REST is longer
LONGEST_S = 5.0


class Rest:
    """The rest after a round of walks: REST times the processor time that it took.

    Sockets of any user ask for walks, as often as he likes. So when they take more than their
    SHARE of the time, the rest is as much longer as it has to be, up to LONGEST_S.
    """

    def __init__(self) -> None:
        self.ends_at = 0.0
        self._paid_at = 0.0  # when all rounds so far will have taken no more than their share

    def begin(self, took: float, now: float) -> None:
        """A round has ended now, after so many seconds of processor time."""
        self._paid_at = max(self._paid_at, now - CREDIT_S) + SHARE * took
        self._paid_at = min(self._paid_at, now + LONGEST_S)
        self.ends_at = max(now + REST * took, self._paid_at)
