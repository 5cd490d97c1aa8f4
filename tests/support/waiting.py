"""Waiting for what neither the kernel nor the bus announces."""

from __future__ import annotations

import time
from collections.abc import Callable

from support.emulated import PATIENCE

TIMEOUT_S = 20.0 * PATIENCE
PAUSE_S = 0.01


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Fails the test, saying `what`, unless it comes to hold in time."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, f"for {TIMEOUT_S:.0f} s not: {what}"
        time.sleep(PAUSE_S)
