"""Ends a drain by force: resets the connections whose programs do not read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sockredird.datapath.generation import Generation
from sockredird.datapath.resets import reset_connection
from sockredird.kernel.sockdiag import Address
from sockredird.loader.records import SIDES, Flow
from sockredird.observe import listing

log = logging.getLogger(__name__)

AT_ONCE = 1_000_000  # connections: as many as [limits] max_connections allows
LOGGED = 20  # pairs of programs


def reset_all(generations: Iterable[Generation]) -> None:
    """Resets every connection of these generations, and logs how many, and whose.

    One in another network namespace stays until its program reads.
    """
    outcomes: Counter[str] = Counter()
    for generation in generations:
        reset = set()
        for c in listing.busiest([generation], AT_ONCE, listing.Query()):
            ends = Address.parse(c["client"]), Address.parse(c["server"])
            error = reset_connection(*ends, c["netns"])
            if not error:
                reset.add(Flow(c["client"], c["server"], c["netns"]))
            outcome = f"not reset ({error})" if error else "reset, as not drained in time"
            outcomes[f"{outcome}: {' > '.join(_program(c, side) for side in SIDES)}"] += 1
        generation.members.purge(reset)
    for outcome, count in outcomes.most_common(LOGGED):
        log.warning("%d connection%s %s", count, "s"[: count != 1], outcome)
    if rest := sum(count for _, count in outcomes.most_common()[LOGGED:]):
        log.warning("%d connections of other programs were left or reset, too", rest)


def _program(connection: dict[str, Any], side: str) -> str:
    """The program that sent last from one end, if any, and its unit."""
    comm = connection.get(f"{side}_comm") or "?"
    pid, unit = connection.get(f"{side}_pid", 0), connection.get(f"{side}_unit", "")
    return f"{comm}[{pid}]" + (f" of {unit}" if unit else "")
