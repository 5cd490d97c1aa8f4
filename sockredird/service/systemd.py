"""Messages to systemd by sd_notify(3), among them the watchdog's pings."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable

import sdnotify

log = logging.getLogger(__name__)


class Service:
    """Does nothing outside systemd, which sets NOTIFY_SOCKET."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()
        if self._notifier.socket is not None:
            self._notifier.socket.setblocking(False)  # we must not hang if systemd does

    def notify(self, *lines: str) -> None:
        self._notifier.notify("\n".join(lines))

    def start_watchdog(self, stuck: Callable[[], float | None]) -> None:
        """Pings twice per WatchdogSec=, unless `stuck` returns for how many seconds a job is."""
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 / 2
        if interval:
            self._ping_watchdog(interval, stuck)

    def _ping_watchdog(self, interval: float, stuck: Callable[[], float | None]) -> None:
        """That this runs proves that the loop does; the worker may be busy, but not for ever."""
        seconds = stuck()
        if seconds is None:
            self.notify("WATCHDOG=1")
        else:
            log.error("no ping to the watchdog: a job has been running for %.0f s", seconds)
        loop = asyncio.get_running_loop()
        loop.call_at(next_tick(loop.time(), interval), self._ping_watchdog, interval, stuck)


def next_tick(now: float, interval: float) -> float:
    """The next multiple of `interval` on the clock of the loop, both in seconds.

    The watchdog's ping and a look for live connections (look.py) wake the processor together so.
    """
    return (math.floor(now / interval) + 1) * interval
