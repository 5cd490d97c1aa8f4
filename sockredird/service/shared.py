"""One run of something expensive for all callers that ask for it at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from sockredird.errors import Busy

_Result = TypeVar("_Result")
REST, LONGEST_REST_S = 10, 0.5


class Shared(Generic[_Result]):
    """Calls `produce` never twice at a time. Lives on the event loop."""

    def __init__(self, produce: Callable[[], Awaitable[_Result]]) -> None:
        self._produce = produce
        self._running: asyncio.Future[_Result] | None = None
        self._closed = False
        self._last: tuple[float, _Result] | None = None

    async def get(self, max_age: float) -> _Result:
        """A result at most `max_age` seconds old, that of a run under way, or of a new one.

        Raises Busy once closed.
        """
        if self._running is None:
            if self._closed:
                raise Busy("sockredird is stopping: try again when it has started")
            if self._last is not None and time.monotonic() - self._last[0] < max_age:
                return self._last[1]
            self._running = asyncio.ensure_future(self._run())
            self._running.add_done_callback(self._ended)
        # shielded, as one caller that gives up must not cancel it for the others
        return await asyncio.shield(self._running)

    async def close(self) -> None:
        """Waits for the run under way; there will be no other."""
        self._closed = True
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> _Result:
        result = await self._produce()
        self._last = time.monotonic(), result
        return result

    def _ended(self, running: asyncio.Future[_Result]) -> None:
        self._running = None
        _retrieve_exception(running)


class Fresh(Generic[_Result]):
    """As Shared, but every answer is from a run that began after the question.

    Anybody may ask, so a run begins no sooner after the one before than REST times the processor
    time that it took, or LONGEST_REST_S, which is what others then wait.
    """

    def __init__(self, produce: Callable[[], Awaitable[tuple[_Result, float]]]) -> None:
        """`produce` returns a result, and how many seconds of processor time it took."""
        self._produce = produce
        self._rested_at = 0.0
        self._running: asyncio.Future[_Result] | None = None
        self._next: asyncio.Future[_Result] | None = None  # has not begun

    async def get(self) -> _Result:
        if self._next is None:
            self._next = asyncio.ensure_future(self._run())
            self._next.add_done_callback(_retrieve_exception)
        return await asyncio.shield(self._next)

    async def _run(self) -> _Result:
        if self._running is not None:
            await asyncio.wait({self._running})
        await asyncio.sleep(self._rested_at - time.monotonic())
        self._running, self._next = self._next, None
        rest = LONGEST_REST_S
        try:
            result, took = await self._produce()
            rest = min(REST * took, LONGEST_REST_S)
            return result
        finally:
            self._rested_at = time.monotonic() + rest


def _retrieve_exception(run: asyncio.Future[_Result]) -> None:
    """Keeps asyncio from logging a failure that no caller is left to receive."""
    if not run.cancelled():
        run.exception()
