"""Waits, from the event loop, for a directory that does not exist yet, such as a cgroup."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from sockredird.kernel.inotify import COMING, GOING, Watch


class Appearance:
    """Watches the nearest directory above that exists, and costs nothing until that changes."""

    def __init__(self, path: Path, appeared: Callable[[], None]) -> None:
        """Calls `appeared` once, soon if the path is there already. Raises OSError."""
        self.path = path
        self._appeared = appeared
        self._loop = asyncio.get_running_loop()
        self._watch: Watch | None = None
        self._look()

    def _look(self) -> None:
        self.close()
        while not self.path.exists():
            above = next(p for p in self.path.parents if p.exists())
            try:
                watch = Watch([above], COMING | GOING)
            except FileNotFoundError:
                continue  # removed since
            below = above / self.path.relative_to(above).parts[0]
            if above.exists() and not below.exists():  # still as it was before watching
                self._watch = watch
                self._loop.add_reader(watch.fileno(), self._look)
                return
            watch.close()
        self._loop.call_soon(self._appeared)

    def close(self) -> None:
        if self._watch is not None:
            self._loop.remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None
