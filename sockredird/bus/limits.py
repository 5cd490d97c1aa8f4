"""How much one sender, and all of them, may have under way; how many refusals are logged.

Every number here is in SECURITY.md, with the test that shows it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

log = logging.getLogger(__name__)

# Calls that have no answer yet. Beyond the second number each sender may still have one, so that
# whoever opens many connections does not keep others from calling.
CALLS_PER_SENDER = 32
CALLS_IN_ALL = 512
# Bytes of bodies whose senders are being authorised; bodies up to the second number may always wait
WAITING_BYTES = 4 << 20
SMALL_BYTES = 4 << 10
# Descriptors that came with such calls, one with each.
WAITING_DESCRIPTORS = 64

REFUSALS_PERIOD_S = 60.0
REFUSALS_LOGGED = 20  # in one period, and one for each sender


class Calls:
    """Those that have no answer yet, by sender and serial."""

    def __init__(self) -> None:
        self._wanted: dict[tuple[str, int], bool] = {}
        self._by_sender: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._wanted)

    def begin(self, sender: str, serial: int, *, answer_wanted: bool) -> str:
        """Why this call is one too many; otherwise empty, and the call counts from now on."""
        under_way = self._by_sender[sender]
        if (sender, serial) in self._wanted:
            return f"an earlier call with serial {serial} has no answer yet"
        if under_way >= CALLS_PER_SENDER:
            return f"{under_way} calls of this connection have no answer yet: wait for them"
        if under_way and len(self._wanted) >= CALLS_IN_ALL:
            return f"{len(self._wanted)} calls of all have no answer yet: make one at a time"
        self._wanted[sender, serial] = answer_wanted
        self._by_sender[sender] += 1
        return ""

    def end(self, sender: str, serial: int) -> bool:
        """Ends a call. Returns whether its answer is to be sent; True if it was not under way."""
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
        """`failed`: by a mistake of ours, so the log gets the traceback, too."""
        now = self._clock()
        if now - self._began >= REFUSALS_PERIOD_S:
            if self._untold:
                log.warning("%d more calls were answered with errors meanwhile", self._untold)
            self._began, self._untold = now, 0
            self._logged.clear()
        if sender in self._logged or len(self._logged) >= REFUSALS_LOGGED:
            self._untold += 1
            return
        self._logged.add(sender)
        level = logging.ERROR if failed else logging.WARNING
        log.log(level, "%s: %s", sender or "on the bus", what[:400], exc_info=failed)
