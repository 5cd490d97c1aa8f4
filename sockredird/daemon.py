"""The daemon: start order, signals, sd_notify, watchdog; hands bus calls to the worker thread."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sdnotify
from dbus_next import Variant
from dbus_next.aio import MessageBus

from sockredird import bus as dbus
from sockredird.config import Config
from sockredird.errors import AlreadyRunning, BusUnavailable
from sockredird.events import EventRelay
from sockredird.manager import Manager
from sockredird.ringbuf import RingBuffers

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 2.0
WORK_LIMIT_S = 120.0  # more than the slowest compile or the longest drain slice takes
RETIRE_PAUSE_S = (0.02, 1.0)  # first and longest pause between looks at stalled readers

SCOPE_SIGNATURES = {
    "cgroup": "s",
    "addresses": "s",
    "exclude_ports": "au",
    "only_ports": "au",
    "exclude_cgroups": "as",
}

_Result = TypeVar("_Result")


def lock(runtime: Path) -> int:
    """A descriptor holding the one-daemon lock. Raises AlreadyRunning naming the holder."""
    runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            raise AlreadyRunning(
                f"another sockredird (pid {holder or 'unknown'}) is running on {runtime}"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd


class Daemon:
    """Implements bus.Backend. Lives on the event loop; the manager lives in the worker thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")
        self._manager = Manager(config, self._changed)
        self._notifier = sdnotify.SystemdNotifier()
        self._stopping = asyncio.Event()
        self._bus: MessageBus
        self._interface: dbus.Manager1 | None = None
        self._rings: RingBuffers | None = None
        self._relay: EventRelay
        self._shown: dict[str, Variant] = {}
        self._working_since: float | None = None
        self._retire_pause = RETIRE_PAUSE_S[0]
        self._retire_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT; the datapath stays as it is.

        Raises SockredirError if it cannot start or loses the bus; the datapath stays then, too.
        """
        lock_fd = lock(Path(self._config.paths.runtime))
        self._bus = await dbus.connect()
        self._relay = EventRelay(self._bus)
        try:
            if not await dbus.name_is_free(self._bus):
                raise BusUnavailable(f"the bus name {dbus.NAME} is taken: another sockredird runs")
            await self._work(self._manager.start)
            self._show()
            self._interface = await dbus.publish(self._bus, self)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stopping.set)
            self._notify("READY=1")
            self._start_watchdog()
            log.info("ready: state=%s", self._manager.state)
            await self._until_stopped()
        finally:
            self._notifier.notify("STOPPING=1")
            self._unwatch_rings()
            self._bus.disconnect()
            self._worker.shutdown()
            os.close(lock_fd)

    async def _until_stopped(self) -> None:
        stop = asyncio.create_task(self._stopping.wait())
        lost = asyncio.create_task(self._bus.wait_for_disconnect())
        await asyncio.wait({stop, lost}, return_when=asyncio.FIRST_COMPLETED)
        if self._stopping.is_set():
            log.info("stopping; the datapath stays as it is: state=%s", self._manager.state)
            stop.cancel()
            lost.cancel()
        else:
            lost.exception()
            raise BusUnavailable("the D-Bus system bus went away; the datapath stays as it is")

    # -- what the bus object calls -----------------------------------------------------------

    async def enable(self, overrides: dict[str, Any]) -> None:
        await self._work(lambda: self._manager.enable(overrides))

    async def disable(self) -> None:
        await self._work(self._manager.disable)
        if self._manager.draining:
            self._retire_soon()

    async def stats(self) -> dict[str, int]:
        return await self._work(self._manager.stats)

    async def subscribe(self, client: str) -> None:
        await self._relay.add(client, self._tracing_changed)
        await self._work(lambda: self._manager.trace(True))

    async def unsubscribe(self, client: str) -> None:
        await self._relay.discard(client)

    def properties(self) -> dict[str, Variant]:
        return self._shown

    # -- worker ------------------------------------------------------------------------------

    async def _work(self, job: Callable[[], _Result]) -> _Result:
        """Runs a job in the worker thread, after those before it."""

        def timed() -> _Result:
            self._working_since = time.monotonic()
            try:
                return job()
            finally:
                self._working_since = None

        return await self._loop.run_in_executor(self._worker, timed)

    def _changed(self) -> None:
        """Called by the manager, in the worker thread."""
        self._loop.call_soon_threadsafe(self._show)

    def _show(self) -> None:
        manager = self._manager
        before = self._shown.get("State")
        scope = {
            name: Variant(SCOPE_SIGNATURES[name], value)
            for name, value in manager.scope.as_dict().items()
        }
        self._shown = {
            "State": Variant("s", manager.state),
            "Since": Variant("t", manager.since),
            "Scope": Variant("a{sv}", scope),
        }
        self._watch_rings()
        self._notify()
        if self._interface is not None and before != self._shown["State"]:
            changed = {name: value.value for name, value in self._shown.items()}
            self._interface.emit_properties_changed(changed)

    def _tracing_changed(self, on: bool) -> None:
        self._loop.create_task(self._work(lambda: self._manager.trace(on)))

    # -- ring buffers and retirement ---------------------------------------------------------

    def _watch_rings(self) -> None:
        self._unwatch_rings()
        live = self._manager.live
        if live is None:
            return
        rings = RingBuffers()
        try:
            rings.add(live.requests, lambda _record: self._retire_soon())
            rings.add(live.events, self._relay.record)
        except OSError:
            # the worker has closed this generation meanwhile; its next change brings us here again
            rings.close()
            return
        self._rings = rings
        self._loop.add_reader(rings.fileno(), rings.consume)

    def _unwatch_rings(self) -> None:
        if self._rings is not None:
            self._loop.remove_reader(self._rings.fileno())
            self._rings.close()
            self._rings = None

    def _retire_soon(self) -> None:
        self._retire_pause = RETIRE_PAUSE_S[0]
        if self._retire_timer is None:
            self._retire_timer = self._loop.call_later(0, self._retire)

    def _retire(self) -> None:
        task = self._loop.create_task(self._work(self._manager.finish_retirements))
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[bool]) -> None:
        """Looks again later while a reader has not drained; nothing is pending otherwise."""
        self._retire_timer = None
        if task.cancelled():
            return
        if task.exception() is not None:
            log.error("cannot retire connections: %s", task.exception())
        elif not task.result():
            self._retire_timer = self._loop.call_later(self._retire_pause, self._retire)
            self._retire_pause = min(self._retire_pause * 2, RETIRE_PAUSE_S[1])

    # -- systemd -----------------------------------------------------------------------------

    def _notify(self, *lines: str) -> None:
        self._notifier.notify("\n".join([*lines, f"STATUS=Acceleration {self._manager.state}"]))

    def _start_watchdog(self) -> None:
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 / 2
        if interval:
            self._ping_watchdog(interval)

    def _ping_watchdog(self, interval: float) -> None:
        """The loop runs, or this would not; the worker may be busy, but not for ever."""
        since = self._working_since
        if since is None or time.monotonic() - since < WORK_LIMIT_S:
            self._notifier.notify("WATCHDOG=1")
        else:
            log.error("the worker has not come back for %.0f s", time.monotonic() - since)
        self._loop.call_later(interval, self._ping_watchdog, interval)
