"""The daemon: start order, signals, sd_notify, watchdog; hands bus calls to the worker thread."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from dbus_next import DBusError, Variant
from dbus_next.aio import MessageBus

from sockredird import __version__, config
from sockredird.bus import connection
from sockredird.bus import manager1 as dbus
from sockredird.bus.events import EventRelay
from sockredird.bus.units import Units
from sockredird.check import benchmark, estimate
from sockredird.check.findings import Finding
from sockredird.config import Config
from sockredird.control.manager import DRAINING, Manager
from sockredird.datapath import inventory
from sockredird.datapath.generation import Generation
from sockredird.errors import BusUnavailable, InvalidConfig, SockredirError, printable
from sockredird.kernel import addresses
from sockredird.loader.records import REQUEST_JOIN, REQUEST_LEARNED, REQUEST_ULP
from sockredird.observe import explain, listing
from sockredird.service.appearance import Appearance
from sockredird.service.endpoint import Endpoint
from sockredird.service.learned import LearnedLooks
from sockredird.service.look import Looks
from sockredird.service.shared import Fresh, Shared
from sockredird.service.systemd import Service
from sockredird.service.tasks import Tasks
from sockredird.service.walks import Walks
from sockredird.service.watch import Watcher
from sockredird.service.worker import Worker

log = logging.getLogger(__name__)

RECONNECT_PAUSE_S = 1.0
RESET_S = 5.0  # how long connections that were reset may take to leave the sockhash
CHECK_MAX_AGE_S = 60.0  # how old the findings may be that others than root get
SCOPE_SIGNATURES = {
    "cgroup": "s",
    "units": "as",
    "addresses": "s",
    "exclude_ports": "au",
    "only_ports": "au",
    "exclude_cgroups": "as",
    "blocking_readers": "s",
    "exclude_units": "as",
}

_Result = TypeVar("_Result")


class Daemon:
    """Implements bus.Backend. Lives on the event loop; the manager lives in the worker thread."""

    def __init__(self, settings: Config, path: Path, required: bool) -> None:
        """`path` is where reload reads the configuration again; see config.load()."""
        self._settings = settings
        self._load: Callable[[], Config] = lambda: config.load(path, required=required)
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        self._worker = Worker()
        self._units = Units(lambda: self._start(self._manager.follow_units))
        self._manager = Manager(settings, self._changed, self._follow_units, self._place_units)
        self._service = Service()
        self._stopping = asyncio.Event()
        self._bus: MessageBus
        self._interface: dbus.Manager1 | None = None
        self._relay = EventRelay(self._stop_tracing)
        self._endpoint = Endpoint(self._metrics)
        self._counts = Fresh(self._stats)
        self._findings = Shared(self._check)
        self._trials = asyncio.Lock()
        self._watchers: list[Watcher] = []
        self._appearance: Appearance | None = None
        self._addresses: addresses.Changes | None = None
        self._shown: dict[str, Variant] = {}
        jobs = self._tasks, self._worker
        self._looks = Looks(*jobs, self._manager.join_live, lambda: self._walks.soon())
        self._walks = Walks(*jobs, self._manager.finish_retirements, self._looks.soon)
        # a walk afterwards accounts for connections that go on, which may end what was learned
        self._learned_looks = LearnedLooks(*jobs, self._manager.note_learned, self._walks.soon)
        self._joined_to: Generation | None = None  # for which the looks have begun
        self._drain_began = self._loop.time()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT; the datapath stays as it is.

        Raises SockredirError if it cannot start, changing nothing. A bus that goes away later is
        waited for: the datapath does not need it.
        """
        root = Path(self._settings.paths.bpffs)
        lock = inventory.lock(root)
        self._loop.set_exception_handler(_handle_exception)
        try:
            await self._connect(first=True)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stopping.set)
            self._loop.add_signal_handler(signal.SIGHUP, lambda: self._tasks.spawn(self._hang_up()))
            self._addresses = addresses.Changes(lambda: self._start(self._manager.note_addresses))
            self._notify("READY=1")
            self._service.start_watchdog(self._worker.stuck)
            log.info("ready: state=%s", self._manager.state)
            while not await self._disconnected():
                await self._reconnect()
            log.info("%s", self._farewell())
        finally:
            self._service.notify("STOPPING=1")
            self._watch([])
            self._looks.end()
            self._await(None)
            if self._addresses is not None:
                self._addresses.close()
            self._endpoint.close()
            await self._findings.close()  # it has a directory on the bpffs
            await self._trials.acquire()  # so has Bench, and no other may begin
            self._units.lose()
            # in another thread, as a job may be waiting for this loop
            await asyncio.to_thread(self._worker.close)
            inventory.unlock(lock, root)

    def _farewell(self) -> str:
        """What the daemon leaves behind when it ends, and how to end that, too."""
        if self._manager.live is None:
            return f"stopping: state={self._manager.state}"
        return (
            "stopping; acceleration stays on without the daemon, pinned in "
            f"{self._manager.live.directory}, and is restored at boot while the unit is enabled. "
            "To end it: sockredirctl disable"
        )

    # -- the bus -----------------------------------------------------------------------------

    async def _connect(self, *, first: bool) -> None:
        bus = await connection.connect()
        try:
            if not await dbus.name_is_free(bus):
                raise BusUnavailable(
                    f"the bus name {dbus.NAME} is taken: another sockredird is running"
                )
            self._units.use(bus)
            if first:
                await self._worker.run(self._manager.start)
                self._show()
                await self._endpoint.use(self._settings.metrics.listen)
            self._relay.use(bus)
            self._interface = await dbus.publish(bus, self)
        except BaseException:
            bus.disconnect()
            raise
        self._bus = bus

    async def _disconnected(self) -> bool:
        """Waits for a signal to stop (True), or for the bus to go away."""
        stop = asyncio.create_task(self._stopping.wait())
        lost = asyncio.create_task(self._bus.wait_for_disconnect())
        await asyncio.wait({stop, lost}, return_when=asyncio.FIRST_COMPLETED)
        if self._stopping.is_set():
            lost.cancel()
            self._bus.disconnect()
            return True
        stop.cancel()
        with suppress(Exception):
            lost.result()
        log.warning("the D-Bus system bus went away; the datapath goes on without it")
        self._interface = None
        self._relay.lose()
        self._units.lose()
        return False

    async def _reconnect(self) -> None:
        """Tries once a second until the bus is back, as nothing announces that."""
        while not self._stopping.is_set():
            with suppress(BusUnavailable):
                await self._connect(first=False)
                log.info("back on the D-Bus system bus")
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), RECONNECT_PAUSE_S)

    # -- what the bus object calls -----------------------------------------------------------

    async def enable(self, overrides: dict[str, Any] | None) -> None:
        if overrides is not None:
            overrides = await self._resolved(overrides)
        await self._worker.run(lambda: self._manager.enable(overrides))

    async def _resolved(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """`overrides` with the units' own names. Raises InvalidConfig for a unit that does not run.

        With `wait`, units need not even exist. An excluded unit need not run, but has to exist.
        """
        keys = dict(overrides)
        wait, configured = keys.pop("wait", False), keys.pop("configured", False)
        if not isinstance(wait, bool) or not isinstance(configured, bool):
            raise InvalidConfig("wait, configured: must be true or false")
        config.override_scope(self._manager.config.scope, keys)
        if units := keys.get("units"):
            names = list(map(config.unit_name, units))
            keys["units"] = await self._units.resolve(names, wait=wait)
        for key in ("exclude_units", "add_exclude_units"):
            if units := keys.get(key):
                names = list(map(config.unit_name, units))
                keys[key] = await self._units.resolve(names, wait=wait, running=False)
        return keys if configured else self._manager.added(keys)

    async def disable(self, force: bool) -> None:
        """Waits for readers for as long as the drain timeout; other calls are served meanwhile.

        With `force`, connections that have not drained by then are reset; the timeout counts from
        the first Disable.
        """
        began = self._loop.time()
        if self._manager.state != DRAINING:
            self._drain_began = began
        await self._worker.run(self._manager.disable)
        timeout = self._manager.config.limits.drain_timeout_s
        await self._drain_until((self._drain_began if force else began) + timeout)
        if force and self._manager.state == DRAINING:
            await self._worker.run(self._manager.reset_draining)
            await self._drain_until(self._loop.time() + RESET_S)

    async def _drain_until(self, end: float) -> None:
        """`end` is a time of the event loop's clock."""
        while self._manager.state == DRAINING and self._loop.time() < end:
            await self._worker.run(self._manager.drain)

    async def reload(self) -> None:
        await self._worker.run(lambda: self._manager.reload(self._load()))
        await self._endpoint.use(self._manager.config.metrics.listen)

    async def stats(self) -> dict[str, int]:
        """Everybody may ask, and each answer takes a walk: callers at the same time share one."""
        return await self._counts.get()

    async def _stats(self) -> tuple[dict[str, int], float]:
        def look() -> tuple[dict[str, int], float]:
            began = time.thread_time()
            self._manager.check()
            return self._manager.stats(), time.thread_time() - began

        return await self._worker.run(look)

    async def connections(self, limit: int, query: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = listing.Query.of(query)
        return await self._worker.run(
            lambda: listing.busiest(self._manager.generations, limit, wanted)
        )

    async def write_connections(self, fd: int, query: dict[str, Any]) -> None:
        wanted = listing.Query.of(query)
        with suppress(BrokenPipeError):  # the reader has seen enough
            await self._worker.run(lambda: listing.write(self._manager.generations, wanted, fd))

    async def explain(self, keys: dict[str, Any]) -> list[dict[str, Any]]:
        return await self._worker.run(lambda: explain.explain(self._manager.view(), keys))

    async def check(self, everything: bool) -> list[dict[str, Any]]:
        """Others than root get findings that may be CHECK_MAX_AGE_S old, without what is private.

        `everything`: the caller is root.
        """
        findings = await self._findings.get(0.0 if everything else CHECK_MAX_AGE_S)
        return [finding.told(everything) for finding in findings]

    async def bench(self, port: int) -> list[dict[str, Any]]:
        return await self._beside(lambda: self._measure(port))

    async def bench_and_estimate(self, port: int) -> dict[str, Any]:
        """Looks at this host's connections first, since measuring slows their programs down."""

        def trial() -> dict[str, Any]:
            seen = estimate.watch(lambda: self._manager.generations, self._worker.wait)
            rows = self._measure(port)
            return {"rows": rows, "estimate": estimate.of(rows, seen)}

        return await self._beside(trial)

    def _measure(self, port: int) -> list[dict[str, Any]]:
        root = Path(self._settings.paths.bpffs)
        return benchmark.run(root, port, lambda: self._manager.generations, self._worker.wait)

    def kernel(self) -> dict[str, Any]:
        return self._manager.kernel.summary()

    def live_connections(self) -> dict[str, Any]:
        return self._manager.live_connections()

    async def _check(self) -> list[Finding]:
        run = self._manager.kernel.run
        return await self._beside(lambda: run(lambda: self._manager.generations, self._worker.wait))

    async def _beside(self, trial: Callable[[], _Result]) -> _Result:
        """Runs a trial beside the worker: one at a time, as all use one directory and cgroup."""
        async with self._trials:
            return await asyncio.to_thread(trial)

    async def learned(self) -> list[dict[str, Any]]:
        return await self._worker.run(self._manager.learned)

    async def forget(self, identity: str) -> None:
        await self._worker.run(lambda: self._manager.forget(identity))

    async def _metrics(self) -> tuple[dict[str, Any], dict[str, int]]:
        shown = {name: value.value for name, value in self._shown.items()}
        return {"Version": __version__, **shown}, await self.stats()

    async def subscribe(self, client: str) -> None:
        await self._relay.add(client)
        if self._relay.wanted:  # the client may be gone again
            await self._worker.run(lambda: self._manager.trace(True))

    async def unsubscribe(self, client: str) -> None:
        await self._relay.discard(client)

    def properties(self) -> dict[str, Variant]:
        return self._shown

    async def _hang_up(self) -> None:
        try:
            await self.reload()
            log.info("the configuration was read again")
        except SockredirError as error:
            log.error("the old configuration stays in force: %s", error)

    # -- worker ------------------------------------------------------------------------------

    def _start(self, job: Callable[[], None]) -> None:
        """Runs a job in the worker thread, for which nobody waits."""
        self._tasks.spawn(self._worker.run(job))

    def _follow_units(self, units: Sequence[str]) -> dict[str, str]:
        """Called by the manager, in the worker thread."""
        return asyncio.run_coroutine_threadsafe(self._units.follow(units), self._loop).result()

    def _place_units(self, units: Sequence[str]) -> dict[str, str]:
        """Called by the manager, in the worker thread."""
        return asyncio.run_coroutine_threadsafe(self._units.places(units), self._loop).result()

    def _changed(self) -> None:
        """Called by the manager, in the worker thread."""
        self._loop.call_soon_threadsafe(self._show)

    def _show(self) -> None:
        manager = self._manager
        before = self._shown
        scope = {
            name: Variant(SCOPE_SIGNATURES[name], value)
            for name, value in manager.scope.as_dict().items()
        }
        self._shown = {
            "State": Variant("s", manager.state),
            "Since": Variant("t", manager.since),
            "Scope": Variant("a{sv}", scope),
            "Units": Variant("a{ss}", dict(manager.units)),
            "Problem": Variant("s", manager.problem),
            "Sources": Variant("a{ss}", manager.sources()),
        }
        self._watch([*([manager.live] if manager.live else []), *manager.draining])
        self._await(manager.awaited)
        self._look_for(manager.live)
        self._notify()
        changed = {
            name: value.value for name, value in self._shown.items() if before.get(name) != value
        }
        if self._interface is not None and changed:
            self._interface.emit_properties_changed(changed)
        if manager.draining or manager.unfinished:
            self._walks.soon()

    def _stop_tracing(self) -> None:
        self._start(lambda: self._manager.trace(False))

    # -- generations -------------------------------------------------------------------------

    def _watch(self, generations: list[Generation]) -> None:
        """Watches these, and no others any more."""
        for watcher in list(self._watchers):
            if watcher.generation not in generations:
                watcher.close()
                self._watchers.remove(watcher)
        watched = [watcher.generation for watcher in self._watchers]
        for generation in generations:
            if generation not in watched:
                # OSError: the worker has closed it meanwhile, and will call _changed()
                with suppress(OSError):
                    self._watchers.append(
                        Watcher(
                            generation,
                            request=self._request,
                            event=self._relay.record,
                            changed=lambda: self._start(self._manager.check),
                        )
                    )

    def _look_for(self, live: Generation | None) -> None:
        """Begins to look for live connections when another generation has become the live one."""
        if live is not self._joined_to:
            self._joined_to = live
            if live is None:
                self._looks.end()
            else:
                self._looks.begin()

    def _await(self, path: Path | None) -> None:
        """Lets the manager recover once the path exists; None ends the wait."""
        if self._appearance is not None:
            if self._appearance.path == path:
                return
            self._appearance.close()
            self._appearance = None
        if path is not None:
            try:
                self._appearance = Appearance(path, lambda: self._tasks.spawn(self._recover()))
            except OSError as error:
                log.warning("cannot watch for %s to appear: %s", path, error)

    async def _recover(self) -> None:
        self._await(None)
        await self._worker.run(self._manager.recover)

    def _request(self, what: int) -> None:
        """Carries out a request of the datapath (enum request)."""
        if what in (REQUEST_LEARNED, REQUEST_ULP):
            self._learned_looks.soon()
        elif what == REQUEST_JOIN:
            self._looks.soon()
        else:
            self._walks.soon()

    # -- systemd -----------------------------------------------------------------------------

    def _notify(self, *lines: str) -> None:
        status = f"STATUS=Acceleration {self._manager.state}"
        if self._manager.problem:
            status += f" ({printable(self._manager.problem)})"
        self._service.notify(*lines, status)


def _handle_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Drops what dbus-next raises although the caller has it, or the bus was disconnected."""
    error = context.get("exception")
    if isinstance(error, DBusError):
        log.debug("answered with an error: %s", error)
    elif isinstance(error, (OSError, EOFError)):
        log.debug("on the bus connection: %s", error)
    else:
        loop.default_exception_handler(context)
