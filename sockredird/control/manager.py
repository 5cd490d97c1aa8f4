"""The state machine: disabled, enabled, draining, failed. Owns the generations on the bpffs.

Everything here may block. The service calls it in one worker thread, one call at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sockredird import config
from sockredird.check import sandbox
from sockredird.check.kernel_check import KernelCheck
from sockredird.config import Config, Scope
from sockredird.control.health import Health
from sockredird.control.resetting import reset_all
from sockredird.control.state import Intent
from sockredird.control.totals import Totals
from sockredird.datapath import inventory
from sockredird.datapath.causes import sentence
from sockredird.datapath.generation import Generation, discard
from sockredird.datapath.join import Joiner, Looked
from sockredird.datapath.learned import Learned, has_kernel_tls
from sockredird.datapath.members import Walked
from sockredird.datapath.plan import Plan
from sockredird.datapath.resets import Resets
from sockredird.errors import InvalidConfig, LoadFailed, SockredirError
from sockredird.kernel import cgroup
from sockredird.loader import compiler
from sockredird.observe import explain
from sockredird.observe.explain import View

log = logging.getLogger(__name__)

DISABLED, ENABLED, DRAINING, FAILED = "disabled", "enabled", "draining", "failed"
RETIRE_SLICE_S = 0.1
DRAIN_AT_ONCE_S = 1.0  # how long a change waits for readers; the worker does nothing else meanwhile


def _empty(walked: Walked) -> bool:
    return walked.entries == 0


def _outermost(units: dict[str, str]) -> tuple[Path, ...]:
    return cgroup.outermost(cgroup.directory(path) for path in units.values() if path)


@contextmanager
def _noting() -> Iterator[None]:
    """Logs errors as warnings, since learned listeners matter for speed only."""
    try:
        yield
    except OSError as error:
        log.warning("the learned listeners cannot be read now: %s", error)


class Manager:
    """`state`, `since` (microseconds since the epoch), `scope` and `problem` are shown to users."""

    def __init__(
        self,
        settings: Config,
        changed: Callable[[], None],
        follow: Callable[[Sequence[str]], dict[str, str]] = lambda _units: {},
        place: Callable[[Sequence[str]], dict[str, str]] = lambda _units: {},
    ) -> None:
        """`changed` is called, in the worker thread, after every change of what is shown.

        `follow` is Units.follow(). Whoever owns the Units calls follow_units() on a change.
        `place` is Units.places().
        """
        self.config = settings
        self.scope = settings.scope
        self.state = DISABLED
        self.since = time.time_ns() // 1000
        self.problem = ""
        self.units: dict[str, str] = {}  # in scope, with their cgroups; empty while not running
        self._follow = follow
        self._place = place
        self.live: Generation | None = None
        self.draining: list[Generation] = []
        self._health = Health()
        self.unfinished = False  # pairs are being retired
        self._changed = changed
        self._tracing = False
        self._root = Path(settings.paths.bpffs)
        self._intent = Intent(Path(settings.paths.state) / "enabled.json")
        self._resets = Resets()
        self._joiner = Joiner()
        self._learned = Learned(Path(settings.paths.state) / "learned.json")
        self._totals = Totals(Path(settings.paths.runtime) / "counters.json")
        self.kernel = KernelCheck(self._root, Path(settings.paths.runtime))

    # -- start -------------------------------------------------------------------------------

    def start(self, *, restore: bool = True) -> None:
        """Adopts what is pinned, finishes what a crash interrupted, enables if that is remembered.

        Without `restore` it ends what is pinned, and forgets the intent, as disable() does.

        Raises LoadFailed or UnsupportedKernel, having changed nothing, if something that is pinned
        is not recognised. If enabling fails, the state is `failed`.
        """
        staging, generations = inventory.scan(self._root)
        sandbox.clear(self._root)
        if not restore:
            self._intent.remember(None)
        overrides = self._intent.remembered()
        self._totals.load()
        self._learned.load()
        for directory in staging:
            log.info("removing the leftovers of an interrupted change: %s", directory)
            discard(directory)
        for generation in generations:
            working = not generation.stopped and (generation.attached or generation.follows_units)
            if restore and working and self.live is None:
                self._adopt_live(generation)
            else:
                generation.stop()
                self.draining.append(generation)
        if self.live is not None:
            self.note_learned()
            self._upgrade(self.live)
        elif overrides is not None:
            self._restore(overrides)
        elif self.draining:
            self._enter(DRAINING)
        self.finish_retirements()
        self.check()

    def _restore(self, overrides: dict[str, Any]) -> None:
        try:
            self.enable(overrides)
        except (SockredirError, OSError) as error:
            log.error("cannot restore acceleration: %s", error)
            with suppress(InvalidConfig):  # `error` is about the same
                self.scope = config.override_scope(self.config.scope, overrides)
            self.problem = str(error)
            if self.live is None:
                self._enter(FAILED)

    def _adopt_live(self, generation: Generation) -> None:
        self.live = generation
        self.scope = Scope(**generation.manifest["scope"])
        self._health.adopted(generation)
        generation.trace(False)
        generation.note_addresses()
        log.info(
            "adopted %s, made by version %s", generation.directory, generation.manifest["version"]
        )
        if self._intent.remembered() is None:
            # a crash came between attaching and remembering, or between forgetting and stopping
            self._intent.remember(self.scope.as_dict())
        try:
            self._follow_live()
        except (SockredirError, OSError) as error:
            # what is attached stays attached
            log.error("cannot follow the units in scope: %s", error)
        self._enter(ENABLED)

    def _upgrade(self, old: Generation) -> None:
        """Replaces a datapath that was made from other BPF code than this version's."""
        if old.manifest["source"] == compiler.source_digest():
            return
        try:
            self._replace(self._plan(self.scope))
        except (SockredirError, OSError) as error:
            self._health.outdated = (
                f"the datapath is still that of version {old.manifest['version']}: {error}; "
                "sockredirctl enable tries again"
            )

    # -- changes -----------------------------------------------------------------------------

    def enable(self, overrides: dict[str, Any] | None = None) -> None:
        """Enables, repairs a damaged datapath, or changes the scope without a gap. Idempotent.

        Without `overrides` the remembered ones stay in force, until disable(). Raises
        InvalidConfig, UnsupportedKernel or LoadFailed; then the old datapath stays in place.
        """
        before = self._intent.remembered()
        if overrides is None:
            overrides = self._intent.usable(self.config.scope)
        scope = config.override_scope(self.config.scope, overrides)
        plan = self._plan(scope)
        self._intent.remember(overrides)
        if self.live is None or self.live.problem() or not self.live.matches(plan):
            try:
                self._replace(plan)
            except BaseException:
                self._intent.remember(before)
                with suppress(SockredirError, OSError):
                    self._follow_live()
                raise
        self.scope = scope
        self._follow_live()
        self.problem = ""
        if self.live is not None:
            self._health.enabled(self.live)
        self._enter(ENABLED)

    def added(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """`overrides`, with those given before if they do nothing but exclude.

        To exclude something must not accelerate more than before.
        """
        if not overrides or not all(key.startswith("add_") for key in overrides):
            return overrides
        before = self._intent.remembered() or {}
        lists = {
            key: list(dict.fromkeys([*before.get(key, []), *overrides[key]])) for key in overrides
        }
        return {**before, **lists}

    def disable(self) -> None:
        """Disables. Idempotent.

        While there is unread data the state is `draining`, and drain() goes on.
        """
        self._intent.remember(None)
        if self.live is not None:
            self._retire_all(self.live)
        elif self.draining:
            self.drain(self._at_once)
        self.scope = self.config.scope
        self._follow_live()
        self.problem = ""
        self._enter(DRAINING if self.draining else DISABLED)

    def reload(self, settings: Config) -> None:
        """Applies another configuration to new connections; on an error, keeps the old one."""
        if settings.paths != self.config.paths:
            raise InvalidConfig("[paths] cannot be changed by a reload: restart sockredird")
        old, self.config = self.config, settings
        try:
            if self._intent.remembered() is not None:
                self.enable()
            else:
                self._cgroups(settings.scope)
                self.scope = settings.scope
        except SockredirError:
            self.config = old
            raise
        self._changed()

    def _plan(self, scope: Scope) -> Plan:
        return Plan(
            scope=scope.as_dict(),
            cgroups=self._cgroups(scope),
            ports=scope.ports(),
            addresses=scope.addresses,
            exclude_cgroups=self._excluded(scope),
            max_connections=self.config.limits.max_connections,
            window_bytes=self.config.limits.window_bytes,
            learn=self.config.learning.unprofitable,
            blocking_readers=scope.blocking_readers,
            memory_bytes=self.config.limits.memory_bytes,
            revalidate_s=float(self.config.limits.revalidate_s),
        )

    def _excluded(self, scope: Scope) -> tuple[str, ...]:
        """Raises InvalidConfig if there is no systemd to ask."""
        places = self._place(scope.exclude_units) if scope.exclude_units else {}
        return (*scope.exclude_cgroups, *places.values())

    def _cgroups(self, scope: Scope) -> tuple[Path, ...]:
        """The cgroups in scope now.

        Raises InvalidConfig if the configured one does not exist, or systemd cannot be asked.
        """
        if not scope.units:
            return (self._health.find_cgroup(scope),)
        return _outermost(self._follow(scope.units))

    def _follow_live(self) -> None:
        """Attaches the live generation to the units in scope that run now, and follows them.

        Raises InvalidConfig or LoadFailed; what is attached stays attached.
        """
        self.units = self._follow(self.scope.units if self.live is not None else [])
        if self.live is None or not self.live.follows_units:
            return
        paths = _outermost(self.units)
        try:
            if self.live.cgroups != {path: cgroup.cgroup_id(path) for path in paths}:
                self.live.attach(paths)
                log.info("attached to %s", " ".join(map(str, paths)) or "no unit: none is running")
        except FileNotFoundError as error:
            log.info("a unit has stopped meanwhile, which systemd will announce: %s", error)

    def follow_units(self) -> None:
        """To be called when a unit in scope has started or stopped."""
        try:
            self._follow_live()
        except (SockredirError, OSError) as error:
            log.error("cannot follow the units in scope: %s", error)
        self._changed()

    def _replace(self, plan: Plan) -> None:
        """Starts a new generation, and then stops the old one, so that one of them is always live.

        Between the two steps both see new connections. The first one to insert a socket keeps it,
        since a psock takes one sk_msg program (sock_map_link(), EBUSY), and the other one declines
        both ends of the pair.
        """
        inventory.check_bpffs(self._root)
        number = inventory.next_number(self._root)
        self.note_learned()
        with self.kernel.gate(self.generations) as trial:
            generation = Generation.create(
                *(self._root, number, plan, trial),
                prepare=lambda new: self._learned.add_to(new, passing=plan.learn),
            )
        if self.live is not None:
            self._retire_all(self.live)
        self.live = generation
        self._joiner = Joiner()  # connections of the old one may join this one at once
        self._health.enabled(generation)
        self.note_learned()
        self.trace(self._tracing)
        log.info("enabled: generation=%d cgroups=%s", number, " ".join(map(str, plan.cgroups)))

    def _retire_all(self, generation: Generation) -> None:
        self.live = None
        generation.stop()
        self.draining.append(generation)
        self._changed()
        self.drain(self._at_once)

    @property
    def _at_once(self) -> float:
        return min(float(self.config.limits.drain_timeout_s), DRAIN_AT_ONCE_S)

    def drain(self, timeout: float = RETIRE_SLICE_S) -> None:
        """Retires pairs of the stopped generations, and removes those whose sockhash is empty."""
        for generation in list(self.draining):
            if generation.members.retire(timeout, _empty):
                self._totals.carry(generation)
                with _noting():
                    self._learned.take_over(generation, self.live)
                self.draining.remove(generation)
                self._changed()  # so that its ring buffers are closed
                generation.remove()
                log.info("removed %s", generation.directory)
        if self.state == DRAINING and not self.draining:
            self._enter(DISABLED)

    def reset_draining(self) -> None:
        """Resets the connections whose programs have not read; drain() then removes the rest."""
        reset_all(self.draining)

    def finish_retirements(self) -> bool:
        """Retires the pairs that have a cause to leave. Returns whether all of them are native."""
        self.drain()
        done = self.live is None or self.live.members.retire(RETIRE_SLICE_S, self._resets.then_done)
        self.unfinished = not done or bool(self.draining)
        return not self.unfinished

    def join_live(self) -> Looked:
        """Puts live connections on the sockhash that carry messages, and could have been there."""
        if self.live is None:
            return Looked(0, 0, 0, 0, False, 0.0)
        try:
            return self._joiner.look(self.live, self.scope.addresses)
        except OSError as error:
            log.warning("live connections cannot be joined now: %s", error)
            return Looked(0, 0, 0, 0, False, 0.0)

    def live_connections(self) -> dict[str, Any]:
        """What the looks for live connections came to so far, for whoever shows it; any thread."""
        joiner = self._joiner
        left = [{**one, "detail": sentence(one["reason"])} for one in joiner.summary]
        return {
            "looks": joiner.looks,
            "eligible": joiner.eligible,
            "joined": joiner.joined,
            "left": left if self.live is not None else [],
        }

    def check(self) -> None:
        """Looks for what others did to pins, cgroups, programs and sockets, and sets `problem`."""
        problem = self.problem
        if self.live is not None:
            problem = self._health.of_live(self.live)
        elif self.state != FAILED:
            problem = self._health.of_disabled(self.scope)
        if problem and problem != self.problem:
            log.log(logging.ERROR if self.live else logging.WARNING, "%s", problem)
        if problem != self.problem:
            self.problem = problem
            self._changed()

    @property
    def awaited(self) -> Path | None:
        """The cgroup to wait for, or None; when it appears, recover() is to be called."""
        return self._health.awaited(self.scope) if self.problem else None

    def recover(self) -> None:
        """To be called when the cgroup in scope appears: enables, if that is remembered."""
        overrides = self._intent.remembered()
        if overrides is not None and (self.live is None or self.live.problem()):
            log.info("cgroup %s has appeared", self.scope.cgroup)
            self._restore(overrides)
        self.check()

    def note_addresses(self) -> None:
        """To be called when the addresses of this host have changed."""
        if self.live is not None:
            self.live.note_addresses()

    def trace(self, on: bool) -> None:
        self._tracing = on
        if self.live is not None:
            if on:
                explain.name_listeners(self.live)
            self.live.trace(on)

    @property
    def generations(self) -> list[Generation]:
        """All generations whose sockhash may have connections."""
        return [*self.draining, *([self.live] if self.live else [])]

    # -- reading -----------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """The counters of Stats: totals since boot, and what is on the sockhash now."""
        stats = self._totals.stats(self.generations)
        # of all that map_entries counts: one that drains has a sockhash of its own
        stats["map_capacity"] = sum(generation.members.capacity for generation in self.generations)
        return stats

    def note_learned(self) -> None:
        """To be called when the datapath has learned a listener, or a program asked for kTLS."""
        if self.live is not None:
            with _noting():
                self.live.begin_learned()
                self.live.kernel_tls(has_kernel_tls())
                self._learned.sync(self.live)

    def learned(self) -> list[dict[str, Any]]:
        self.note_learned()
        return self._learned.shown()

    def forget(self, identity: str) -> None:
        """Removes a learned listener, or all if `identity` is empty.

        Raises InvalidConfig if there is no such one, LoadFailed if a map cannot be changed.
        """
        self.note_learned()
        try:
            self._learned.forget(identity, self.generations)
        except OSError as error:
            raise LoadFailed(f"cannot remove learned listeners: {error}; try again") from error

    def sources(self) -> dict[str, str]:
        """Where each key of the scope comes from: `option`, `file` or `default`, or two of them."""
        overrides = self._intent.remembered() or {}
        given = self.config.scope.given()
        found = {}
        for key in self.scope.as_dict():
            configured = "file" if key in given else "default"
            added = f"add_{key}" in overrides
            # what is added to nothing is all there is
            alone = key in overrides or (added and not getattr(self.config.scope, key))
            found[key] = "option" if alone else configured + ("+option" if added else "")
        return found

    def view(self) -> View:
        excluded: tuple[str, ...] = tuple(self.scope.exclude_cgroups)
        with suppress(InvalidConfig):  # systemd does not answer
            excluded = self._excluded(self.scope)
        return View(
            enabled=self.live is not None,
            scope=self.scope,
            excluded=excluded,
            replaced=self.live is not None and self.live.number > 1,
            cgroups=tuple(self.units.values()) if self.scope.units else (self.scope.cgroup,),
            generations=self.generations,
            learned=self._learned,
            left=self._joiner.left,
        )

    def _enter(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.since = time.time_ns() // 1000
        if state == ENABLED and self.live is not None:
            self.since = self.live.manifest["created"]
        self._changed()
