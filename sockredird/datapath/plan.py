"""What a generation is for: kept in its manifest, compared when a change is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sockredird import __version__
from sockredird.loader import compiler
from sockredird.loader.records import CAUSES

LAYOUT_VERSION = 10


@dataclass(frozen=True)
class Plan:
    """`scope` is as configured; the other fields are what it means on this host."""

    scope: dict[str, Any]
    cgroups: tuple[Path, ...]
    ports: frozenset[int]
    max_connections: int
    window_bytes: int
    addresses: str = "loopback"  # of records.ADDRESSES
    exclude_cgroups: tuple[str, ...] = ()
    learn: bool = True
    blocking_readers: str = "tcp"
    memory_bytes: int = 0  # kernel memory of all that is unread; 0: a thirty-second of RAM
    revalidate_s: float = 10.0

    @property
    def memory(self) -> int:
        """The budget for unread data, in bytes."""
        return self.memory_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 32

    def manifest(self) -> dict[str, Any]:
        """The part of a generation's manifest that follows from this plan and this version."""
        return {
            "layout": LAYOUT_VERSION,
            "version": __version__,
            "source": compiler.source_digest(),
            "causes": [*CAUSES],
            "scope": self.scope,
            "max_connections": self.max_connections,
            "window_bytes": self.window_bytes,
            "learn": self.learn,
            "memory_bytes": self.memory,
            "revalidate_s": self.revalidate_s,
        }
