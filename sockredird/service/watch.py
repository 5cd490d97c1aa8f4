"""Watches one generation from the event loop: its ring buffers, and whether its pins stay."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sockredird.datapath import links
from sockredird.datapath.adoption import PIN_NAMES
from sockredird.datapath.generation import Generation
from sockredird.kernel.inotify import Watch
from sockredird.kernel.ringbuf import RingBuffers

log = logging.getLogger(__name__)


class Watcher:
    """Costs nothing while nothing happens: everything here waits in the loop's epoll."""

    def __init__(
        self,
        generation: Generation,
        *,
        request: Callable[[int], None],
        event: Callable[[bytes], None],
        changed: Callable[[], None],
    ) -> None:
        """Calls `request` with what the datapath asks for, `event` for each record, `changed`
        on removals.

        Raises OSError if the generation is being removed already.
        """
        self.generation = generation
        self._changed = changed
        self._cgroups = {cgroup.name for cgroup in generation.cgroups}
        self._loop = asyncio.get_running_loop()
        self._rings = RingBuffers()
        try:
            self._rings.add(generation.requests, lambda record: request(record[0]))
            self._rings.add(generation.events, event)
            directories = {cgroup.parent for cgroup in generation.cgroups}
            self._watch = Watch([generation.directory, *sorted(directories)])
        except OSError:
            self._rings.close()
            raise
        self._loop.add_reader(self._rings.fileno(), self._rings.consume)
        self._loop.add_reader(self._watch.fileno(), self._removed)

    def _removed(self) -> None:
        # cgroups beside ours come and go, too
        names = self._watch.names()
        if names & {"", *self._cgroups, *PIN_NAMES} or any(map(links.is_link, names)):
            self._changed()

    def close(self) -> None:
        self._rings.consume()
        for source in (self._rings, self._watch):
            self._loop.remove_reader(source.fileno())
            source.close()
