"""Whether the kernel takes the fentry programs that see what programs do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def takes_fentry() -> bool:
    """Debian's configuration says so: on arm64, Linux has had the option since 6.4."""
    configuration = Path(f"/boot/config-{os.uname().release}").read_text()
    return "\nCONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y\n" in configuration


NEEDS_FENTRY = pytest.mark.skipif(
    not takes_fentry(), reason="this kernel takes no fentry programs: ftrace has no direct calls"
)
