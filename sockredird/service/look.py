"""When the daemon looks for live connections to join."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sockredird.datapath.join import Looked
from sockredird.service.systemd import next_tick
from sockredird.service.tasks import Tasks
from sockredird.service.worker import Worker

# Pauses between two looks: after one that joined something, or found what was not there before;
# the first one while there is nothing to join; and the longest, half of WatchdogSec= in the unit,
# after which a connection that has become active is seen, to join at the look after that, in 15 s.
SOON_S, FIRST_S, LONGEST_S = 0.3, 1.0, 12.0
SHARE = 1000  # looks take no more than one part in so many of the time
FREE_LOOKS = 5  # without that limit, to join soon what is connected at Enable


class Looks:
    """Looks soon after begin() and soon(), else now and then.

    Lives on the event loop. Two looks make one decision, as a connection has to carry messages
    between them.
    """

    def __init__(
        self, tasks: Tasks, worker: Worker, look: Callable[[], Looked], joined: Callable[[], None]
    ) -> None:
        """`look` runs in the worker thread.

        `joined` is called when connections were joined, or found no room. A walk then looks
        whether they begin, and makes room.
        """
        self._tasks = tasks
        self._worker = worker
        self._look = look
        self._joined = joined
        self._pause = FIRST_S
        self._free = 0
        self._rested_at = 0.0  # from when on SHARE allows another look
        self._owed = 0.0  # seconds of rest for looks that were not paid for yet
        self._second = False  # the next look is the second one of a decision
        self._timer: asyncio.TimerHandle | None = None
        self._looking = False
        self._going = False
        self._wanted = False  # soon() was called since the last look began

    def begin(self) -> None:
        """Acceleration has begun: what is connected already joins soon."""
        self._going = True
        self._free = FREE_LOOKS
        self._pause = FIRST_S
        if not self._looking:
            self._at(asyncio.get_running_loop().time())

    def soon(self) -> None:
        """There are connections that may join: new ones, or some that were handed back.

        SHARE still holds.
        """
        self._wanted = True
        due = max(asyncio.get_running_loop().time() + SOON_S, self._rested_at)
        if self._timer is not None and self._timer.when() > due:
            self._pause = SOON_S
            self._at(due)

    def end(self) -> None:
        self._going = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._start)

    def _start(self) -> None:
        self._timer = None
        self._looking = True
        self._tasks.spawn(self._run())

    async def _run(self) -> None:
        self._wanted = False
        try:
            looked = await self._worker.run(self._look)
        except Exception:  # the next one may succeed
            if self._going:
                self._at(next_tick(asyncio.get_running_loop().time(), LONGEST_S))
            raise
        finally:
            self._looking = False
        if looked.joined or looked.full:
            self._joined()
        if looked.joined:
            self._pause, self._free = SOON_S, max(self._free, 1)
        elif looked.new or self._wanted:
            self._pause = SOON_S
        elif looked.eligible <= looked.left and not self._free:
            self._pause = LONGEST_S
        rest = self._rest_after(looked)
        now = asyncio.get_running_loop().time()
        self._rested_at = now + rest
        if self._going and self._pause < LONGEST_S:
            self._at(now + max(self._pause, rest))
        elif self._going:
            self._at(next_tick(now + rest, LONGEST_S))
        self._pause = min(2 * self._pause, LONGEST_S)
        self._free = max(self._free - 1, 0)

    def _rest_after(self, looked: Looked) -> float:
        """Seconds that SHARE asks for. The two looks of one decision are paid for together."""
        if self._free:
            return 0.0
        self._owed += SHARE * looked.seconds
        if looked.new and not self._second:
            self._second = True
            return 0.0
        rest, self._owed, self._second = self._owed, 0.0, False
        return rest
