"""Guests whose processor is emulated run a tenth to a twentieth as fast as the machine below.

What a test repeats to meet a race it repeats less often there, and waits longer before it gives up.
"""

from __future__ import annotations

import os

EMULATED = "SOCKREDIR_EMULATED" in os.environ
PATIENCE = 5 if EMULATED else 1  # factor of every timeout
PAUSE_S = 0.05 if EMULATED else 0.0  # of traffic, for what goes on under it to get on, too


def times(number: int) -> int:
    return max(3, number // 10) if EMULATED else number
