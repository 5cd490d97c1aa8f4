"""What a generation is for: kept in its manifest, compared when a change is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sockredird import __version__
from sockredird.loader import compiler

LAYOUT_VERSION = 4


@dataclass(frozen=True)
class Plan:
    """`scope` as configured; the rest is what it comes down to on this host."""

    scope: dict[str, Any]
    cgroups: tuple[Path, ...]
    ports: frozenset[int]
    max_connections: int
    window_bytes: int
    addresses: str = "loopback"  # of layout.ADDRESSES
    exclude_cgroups: tuple[str, ...] = ()
    learn: bool = True

    def manifest(self) -> dict[str, Any]:
        """What creating a generation for this plan now would note down."""
        return {
            "layout": LAYOUT_VERSION,
            "version": __version__,
            "source": compiler.source_digest(),
            "scope": self.scope,
            "max_connections": self.max_connections,
            "window_bytes": self.window_bytes,
            "learn": self.learn,
        }
