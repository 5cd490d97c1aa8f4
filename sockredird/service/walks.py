"""When the daemon walks over the accelerated connections, to retire those that have a cause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sockredird.service.rest import Rest
from sockredird.service.tasks import Tasks
from sockredird.service.worker import Worker

PAUSE_S = (0.02, 1.0)  # first and longest pause between walks for a reader that has not drained


class Walks:
    """Walks when asked to, one round at a time, and again while a reader has not drained.

    Lives on the event loop. Otherwise nothing is scheduled. Each round is followed by a Rest, as
    sockets of any user ask for walks.
    """

    def __init__(
        self, tasks: Tasks, worker: Worker, walk: Callable[[], bool], finished: Callable[[], None]
    ) -> None:
        """`walk` runs in the worker thread, and returns whether nothing is left to retire.

        `finished` is called after such a round.
        """
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._worker = worker
        self._walk = walk
        self._finished = finished
        self._rest = Rest()
        self._pause = PAUSE_S[0]
        self._timer: asyncio.TimerHandle | None = None
        self._walking = False
        self._again = False  # asked for since the round under way began

    def soon(self) -> None:
        self._again = True
        self._pause = PAUSE_S[0]
        if not self._walking:
            self._after(0.0)

    def _after(self, pause: float) -> None:
        if self._timer is not None:  # for a reader that has not drained: not as soon
            self._timer.cancel()
        due = max(self._loop.time() + pause, self._rest.ends_at)
        self._timer = self._loop.call_at(due, self._begin)

    def _begin(self) -> None:
        self._walking = True
        self._tasks.spawn(self._round())

    async def _round(self) -> None:
        """What fails is tried again, too, as the programs may not ask for it once more."""
        self._again = done = False
        try:
            done = await self._worker.run(self._timed)
        finally:
            self._walking = False
            if self._again:
                self._after(0.0)
            elif not done:
                self._after(self._pause)
                self._pause = min(self._pause * 2, PAUSE_S[1])
        if done:
            self._finished()

    def _timed(self) -> bool:
        """Runs in the worker thread, whose processor time is that of the walks."""
        began = time.thread_time()
        try:
            return self._walk()
        finally:
            self._rest.begin(time.thread_time() - began, self._loop.time())
