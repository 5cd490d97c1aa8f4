"""The one thread in which everything that blocks runs, one job at a time, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LIMIT_S = 300.0  # more than the slowest compile or the longest drain slice takes

_Result = TypeVar("_Result")


class Worker:
    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")
        self._since: float | None = None

    async def run(self, job: Callable[[], _Result]) -> _Result:
        """Runs a job after those before it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, job)

    def wait(self, job: Callable[[], _Result]) -> _Result:
        """As run(), for a thread other than the event loop's."""
        return self._thread.submit(self._timed, job).result()

    def _timed(self, job: Callable[[], _Result]) -> _Result:
        self._since = time.monotonic()
        try:
            return job()
        finally:
            self._since = None

    def stuck(self) -> float | None:
        """For how many seconds the present job has been running, if that is LIMIT_S or more."""
        since = self._since
        if since is None or time.monotonic() - since < LIMIT_S:
            return None
        return time.monotonic() - since

    def close(self) -> None:
        """Waits for the job under way."""
        self._thread.shutdown()
