"""Runs a property for a while, with inputs that hypothesis makes up anew each time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

# For each target: there are seven, and so a minute in all. `make fuzz` gives them longer.
SECONDS = float(os.environ.get("SOCKREDIR_FUZZ_S", "8"))
_EXAMPLES = 100


def for_a_while(strategy: SearchStrategy[Any], holds: Callable[[Any], None]) -> int:
    """How many inputs `holds` was tried with; raises what it raised for the simplest one."""
    tried = 0

    def count(value: Any) -> None:
        nonlocal tried
        tried += 1
        holds(value)

    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        once = settings(
            max_examples=_EXAMPLES,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )(given(strategy)(count))
        seed(random.getrandbits(64))(once)()
    return tried
