"""The state machine: disabled, enabled, draining, failed. Owns the generations on the bpffs.

Everything here blocks and runs in one worker thread, one call at a time; daemon.py sees to that.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sockredird import cgroup, config, store
from sockredird.adoption import is_ours
from sockredird.config import Config, Scope
from sockredird.errors import LoadFailed, SockredirError, UnsupportedKernel
from sockredird.generation import Generation, Plan, Walked, discard
from sockredird.layout import COUNTERS
from sockredird.mounts import filesystem_of

log = logging.getLogger(__name__)

DISABLED, ENABLED, DRAINING, FAILED = "disabled", "enabled", "draining", "failed"
_DIRECTORY = re.compile(r"(generation|staging)-(\d+)")
RETIRE_SLICE_S = 0.1


def check_bpffs(root: Path) -> None:
    """Raises UnsupportedKernel unless `root`, or its nearest existing parent, is on a bpffs."""
    existing = root
    while not existing.exists():
        existing = existing.parent
    if filesystem_of(existing) != "bpf":
        raise UnsupportedKernel(
            f"{root} is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf, "
            "or point [paths] bpffs at one"
        )


def _nothing_leaving(walked: Walked) -> bool:
    return walked.leaving == 0


def _empty(walked: Walked) -> bool:
    return walked.entries == 0


class Manager:
    def __init__(self, settings: Config, changed: Callable[[], None]) -> None:
        """`changed` is called after every change of state, in the worker thread."""
        self.config = settings
        self.scope = settings.scope
        self.state = DISABLED
        self.since = time.time_ns() // 1000
        self.live: Generation | None = None
        self.draining: list[Generation] = []
        self._changed = changed
        self._tracing = False
        self._root = Path(settings.paths.bpffs)
        self._intent = Path(settings.paths.state) / "enabled.json"
        self._counts = Path(settings.paths.runtime) / "counters.json"
        self._carried = dict.fromkeys(COUNTERS, 0)
        self._carried_from = 0

    # -- start -------------------------------------------------------------------------------

    def start(self) -> None:
        """Adopts what is pinned, finishes what a crash interrupted, restores the intent.

        Raises LoadFailed or UnsupportedKernel if there is something it does not recognise, having
        changed nothing. A failure to enable is kept as state `failed`.
        """
        check_bpffs(self._root)
        carried = store.read(self._counts)
        self._carried = {name: int(carried.get(name, 0)) for name in COUNTERS}
        self._carried_from = int(carried.get("generation", 0))
        staging, generations = self._inventory()
        for directory in staging:
            log.info("removing the leftovers of an interrupted change: %s", directory)
            discard(directory)
        for generation in generations:
            if generation.attached and not generation.stopped and self.live is None:
                self._adopt_live(generation)
            else:
                generation.stop()
                self.draining.append(generation)
        intent = store.read(self._intent)
        if self.live is None and intent.get("enabled"):
            try:
                self.enable(intent.get("scope"))
            except SockredirError as error:
                log.error("cannot restore acceleration: %s", error)
                self._enter(FAILED)
        elif self.live is None and self.draining:
            self._enter(DRAINING)
        self.finish_retirements()

    def _inventory(self) -> tuple[list[Path], list[Generation]]:
        """Staging directories, and opened generations, newest first."""
        if not self._root.exists():
            return [], []
        staging: list[Path] = []
        numbered: list[tuple[int, Path]] = []
        for path in self._root.iterdir():
            match = _DIRECTORY.fullmatch(path.name)
            if match and path.is_dir() and match[1] == "generation":
                numbered.append((int(match[2]), path))
            elif match and path.is_dir() and is_ours(path):
                staging.append(path)
            else:
                raise LoadFailed(
                    f"{path} is not sockredird's. Nothing was changed; remove it, or point "
                    "[paths] bpffs elsewhere"
                )
        return staging, [Generation.adopt(path) for _, path in sorted(numbered, reverse=True)]

    def _adopt_live(self, generation: Generation) -> None:
        self.live = generation
        self.scope = Scope(**generation.manifest["scope"])
        log.info(
            "adopted %s made by version %s", generation.directory, generation.manifest["version"]
        )
        generation.trace(False)
        self._enter(ENABLED)
        self.since = generation.manifest["created"]

    # -- changes -----------------------------------------------------------------------------

    def enable(self, overrides: dict[str, Any] | None = None) -> None:
        """Idempotent; with another scope than the one in force, a new generation takes over."""
        scope = config.override_scope(self.config.scope, overrides or {})
        path = cgroup.resolve(scope.cgroup)
        if self.live is not None and self.live.attached and self.scope == scope:
            self._remember(overrides)
            return
        check_bpffs(self._root)
        number = 1 + max((int(p.name.partition("-")[2]) for p in self._directories()), default=0)
        generation = Generation.create(
            self._root,
            number,
            Plan(
                scope=scope.as_dict(),
                cgroup=path,
                ports=scope.ports(),
                max_connections=self.config.limits.max_connections,
                window_bytes=self.config.limits.window_bytes,
            ),
        )
        if self.live is not None:
            self._retire_all(self.live)
        self.live = generation
        self.scope = scope
        generation.trace(self._tracing)
        self._remember(overrides)
        log.info("enabled: scope cgroup=%s addresses=%s", path, scope.addresses)
        self._enter(ENABLED)

    def disable(self) -> None:
        """Idempotent. Leaves state `draining` if unread data outlasts the drain timeout."""
        store.remove(self._intent)
        if self.live is not None:
            generation, self.live = self.live, None
            self._retire_all(generation)
        elif self.draining:
            self.drain(float(self.config.limits.drain_timeout_s))
        self.scope = self.config.scope
        self._enter(DRAINING if self.draining else DISABLED)

    def _retire_all(self, generation: Generation) -> None:
        generation.stop()
        self.draining.append(generation)
        self.drain(float(self.config.limits.drain_timeout_s))

    def drain(self, timeout: float = RETIRE_SLICE_S) -> None:
        """Takes the stopped generations further; removes those whose sockhash is empty."""
        remaining = []
        for generation in self.draining:
            if generation.retire(timeout, _empty):
                self._carry(generation)
                generation.remove()
                log.info("removed %s", generation.directory)
            else:
                remaining.append(generation)
        self.draining = remaining
        if self.state == DRAINING and not self.draining:
            self._enter(DISABLED)

    def finish_retirements(self) -> bool:
        """Takes pairs that left acceleration off the sockhash; whether all are off."""
        self.drain()
        done = self.live is None or self.live.retire(RETIRE_SLICE_S, _nothing_leaving)
        return done and not self.draining

    def trace(self, on: bool) -> None:
        self._tracing = on
        if self.live is not None:
            self.live.trace(on)

    # -- reading -----------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """The counters of INTERFACE: totals since boot, and what is on the sockhash now."""
        totals = dict(self._carried)
        entries = connections = 0
        for generation in [*self.draining, *([self.live] if self.live else [])]:
            for name, value in self._counters(generation).items():
                totals[name] += value
            walked = generation.walk()
            entries += walked.entries
            connections += walked.connections
        for kind in ("declined", "retired"):
            totals[f"{kind}_connections"] = sum(
                value for name, value in totals.items() if name.startswith(f"{kind}_")
            )
        totals["active_connections"] = connections
        totals["map_entries"] = entries
        totals["map_capacity"] = self.live.capacity() if self.live else 0
        return totals

    # -- helpers -----------------------------------------------------------------------------

    def _directories(self) -> list[Path]:
        return list(self._root.iterdir()) if self._root.exists() else []

    def _remember(self, overrides: dict[str, Any] | None) -> None:
        store.write(self._intent, {"enabled": True, "scope": overrides or {}})

    def _carry(self, generation: Generation) -> None:
        """Keeps the counters of a generation about to go; lost at boot, as /run is."""
        for name, value in self._counters(generation).items():
            self._carried[name] += value
        self._carried_from = generation.manifest["created"]
        store.write(self._counts, {**self._carried, "generation": self._carried_from})

    def _counters(self, generation: Generation) -> dict[str, int]:
        """Counters not carried yet: a crash may fall between carrying and removing."""
        if generation.manifest["created"] == self._carried_from:
            return {}
        return generation.counters()

    def _enter(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.since = time.time_ns() // 1000
        self._changed()
