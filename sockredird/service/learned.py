"""When the daemon looks at what the datapath has learned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sockredird.service.tasks import Tasks
from sockredird.service.worker import Worker

PAUSE_S = 1.0  # between two looks, which write a file
REST = 20  # nor does one begin sooner after the last one than this times what that took


class LearnedLooks:
    """Looks when asked to, one look at a time, as any user may cause as many as he likes.

    Lives on the event loop.
    """

    def __init__(
        self, tasks: Tasks, worker: Worker, look: Callable[[], None], looked: Callable[[], None]
    ) -> None:
        """`look` runs in the worker thread; `looked` is called after each look."""
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._worker = worker
        self._look = look
        self._looked = looked
        self._scheduled = False  # or under way
        self._again = False  # asked for since the look under way began
        self._not_before = 0.0  # that time of the loop

    def soon(self) -> None:
        self._again = True
        if not self._scheduled:
            self._scheduled = True
            due = max(self._loop.time(), self._not_before)
            self._loop.call_at(due, lambda: self._tasks.spawn(self._run()))

    async def _run(self) -> None:
        self._again = False
        began = self._loop.time()
        try:
            await self._worker.run(self._look)
        finally:
            now = self._loop.time()
            self._not_before = now + max(PAUSE_S, REST * (now - began))
            self._scheduled = False
            if self._again:
                self.soon()
        self._looked()
