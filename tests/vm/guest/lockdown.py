"""What the kernel keeps even from root."""

from __future__ import annotations

from pathlib import Path


def lockdown() -> str:
    """The levels there are, the one in force in brackets."""
    return Path("/sys/kernel/security/lockdown").read_text()
