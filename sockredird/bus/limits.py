"""How much one sender, and all together, may have under way on the bus; what is logged of refusals.

Every number here is in SECURITY.md, with the test that shows it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

log = logging.getLogger(__name__)

# Calls that have no answer yet. Beyond the second number a sender may have one at a time: whoever
# opens many connections keeps nobody else from calling.
CALLS_PER_SENDER = 32
CALLS_IN_ALL = 512
# Bodies that wait for the authorisation of their senders, in bytes; smaller ones always may.
WAITING_BYTES = 4 << 20
SMALL_BYTES = 4 << 10
# Descriptors that came with such calls, one each
WAITING_DESCRIPTORS = 64

REFUSALS_PERIOD_S = 60.0
REFUSALS_LOGGED = 20  # in one period; of one sender 1


class Calls:
    """Those that have no answer yet, by sender and serial."""

    def __init__(self) -> None:
        self._wanted: dict[tuple[str, int], bool] = {}
        self._by_sender: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._wanted)

    def begin(self, sender: str, serial: int, *, answer_wanted: bool) -> str:
        """Why this call is one too many; empty if it is not, and counts from now on."""
        under_way = self._by_sender[sender]
        if (sender, serial) in self._wanted:
            return f"there is a call with serial {serial} without an answer already"
        if under_way >= CALLS_PER_SENDER:
            return f"{under_way} calls of this connection have no answer yet: wait for those"
        if under_way and len(self._wanted) >= CALLS_IN_ALL:
            return f"{len(self._wanted)} calls have no answer yet: try one at a time"
        self._wanted[sender, serial] = answer_wanted
        self._by_sender[sender] += 1
        return ""

    def end(self, sender: str, serial: int) -> bool:
        """Whether the answer is to be sent; that of a call that is not under way is."""
        wanted = self._wanted.pop((sender, serial), None)
        if wanted is None:
            return True
        self._by_sender[sender] -= 1
        if not self._by_sender[sender]:
            del self._by_sender[sender]
        return wanted


class Refusals:
    """Logs what is refused: once per sender and minute, and no more than 20 in a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._logged: set[str] = set()
        self._untold = 0

    def note(self, sender: str, what: str, *, failed: bool = False) -> None:
        """`failed`: by a mistake of ours, whose traceback the log has, too."""
        now = self._clock()
        if now - self._began >= REFUSALS_PERIOD_S:
            if self._untold:
                log.warning("%d more calls were answered with errors since", self._untold)
            self._began, self._untold = now, 0
            self._logged.clear()
        if sender in self._logged or len(self._logged) >= REFUSALS_LOGGED:
            self._untold += 1
            return
        self._logged.add(sender)
        level = logging.ERROR if failed else logging.WARNING
        log.log(level, "%s: %s", sender or "on the bus", what[:400], exc_info=failed)
