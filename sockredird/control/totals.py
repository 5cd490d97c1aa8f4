"""The counters of Stats: sums over all generations since boot."""

from __future__ import annotations

import logging
from pathlib import Path

from sockredird.datapath.generation import Generation
from sockredird.kernel import files
from sockredird.loader.records import COUNTERS

log = logging.getLogger(__name__)


class Totals:
    """A generation has its counters in a map; a file below [paths] runtime has earlier ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._carried = dict.fromkeys(COUNTERS, 0)
        self._carried_from = 0  # when the last generation in it was created

    def load(self) -> None:
        """Reads the file; what cannot be a counter counts as 0.

        Raises OSError as files.read_or_empty() does.
        """
        carried = {k: v for k, v in files.read_or_empty(self._path).items() if _is_counter(v)}
        self._carried = {name: carried.get(name, 0) for name in COUNTERS}
        self._carried_from = carried.get("generation", 0)

    def carry(self, generation: Generation) -> None:
        """Keeps the counters of a generation that is about to be removed, until the host boots."""
        for name, value in self._of(generation).items():
            self._carried[name] += value
        self._carried_from = generation.manifest["created"]
        try:
            files.write(self._path, {**self._carried, "generation": self._carried_from})
        except OSError as error:
            log.warning("the totals will not survive a restart of sockredird: %s", error)

    def stats(self, generations: list[Generation]) -> dict[str, int]:
        """All counters of Stats but `map_capacity`.

        They only grow, except `active_connections` and `map_entries`.
        """
        totals = dict(self._carried)
        entries = connections = 0
        for generation in generations:
            for name, value in self._of(generation).items():
                totals[name] += value
            walked = generation.members.walk()
            entries += walked.entries
            connections += walked.connections
        for kind in ("declined", "retired"):
            totals[f"{kind}_connections"] = sum(
                value for name, value in totals.items() if name.startswith(f"{kind}_")
            )
        totals["active_connections"] = connections
        totals["map_entries"] = entries
        return totals

    def _of(self, generation: Generation) -> dict[str, int]:
        """The counters of a generation, unless they are carried already.

        A crash may come after carrying them and before removing the generation.
        """
        if generation.manifest["created"] == self._carried_from:
            return {}
        return generation.counters()


def _is_counter(value: object) -> bool:
    """Whether it fits `t` in Stats, even after counting on for as long as a host runs."""
    return type(value) is int and 0 <= value < 1 << 63
