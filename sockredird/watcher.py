"""Watches one generation from the event loop: its ring buffers, and who removes its pins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sockredird.generation import Generation
from sockredird.inotify import Watch
from sockredird.ringbuf import RingBuffers

log = logging.getLogger(__name__)

LET_GO_S = 1.0


class Watchers:
    """One for the live generation, and for each draining one: those still retire connections."""

    def __init__(self, **callbacks: Any) -> None:
        """As Watcher takes them. To be called on the event loop, but for let_go()."""
        self._callbacks = callbacks
        self._loop = asyncio.get_running_loop()
        self._all: dict[Generation, Watcher] = {}

    def watch(self, generations: list[Generation]) -> None:
        """These and no others."""
        for gone in self._all.keys() - set(generations):
            self._all.pop(gone).close()
        for generation in generations:
            if generation not in self._all:
                # OSError: it was closed meanwhile, and the next change brings us here again
                with suppress(OSError):
                    self._all[generation] = Watcher(generation, **self._callbacks)

    def let_go(self, generation: Generation) -> None:
        """Called in another thread before the generation is removed; returns when it may be."""

        async def close() -> None:
            if watcher := self._all.pop(generation, None):
                watcher.close()

        # not for ever: at the daemon's end the loop waits for that thread
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(close(), self._loop).result(LET_GO_S)


class Watcher:
    """Costs nothing while nothing happens: everything here waits in the loop's epoll."""

    def __init__(
        self,
        generation: Generation,
        *,
        retire: Callable[[], None],
        event: Callable[[bytes], None],
        changed: Callable[[], None],
    ) -> None:
        """Calls `retire` when a pair has to leave, `event` for each record, `changed` on removals.

        Raises OSError if the generation is on its way out already.
        """
        self.generation = generation
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._rings = RingBuffers()
        try:
            self._rings.add(generation.requests, lambda _record: retire())
            self._rings.add(generation.events, event)
            self._watch = Watch([generation.directory, Path(generation.manifest["cgroup"])])
        except OSError:
            self._rings.close()
            raise
        self._loop.add_reader(self._rings.fileno(), self._rings.consume)
        self._loop.add_reader(self._watch.fileno(), self._removed)

    def _removed(self) -> None:
        self._watch.drain()
        self._changed()

    def close(self) -> None:
        self._rings.consume()  # what was said last
        for source in (self._rings, self._watch):
            self._loop.remove_reader(source.fileno())
            source.close()
