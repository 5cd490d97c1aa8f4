"""A subscriber that does not read loses events and gets their number, and nobody waits for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from sockredird.bus.events import WINDOW
from support import mix
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.trace import Trace

CONNECTIONS = 1000


def shown(trace: Trace) -> int:
    """How many events arrived, and how many were reported as dropped."""
    return sum(e["event"] != "dropped" for e in trace.events) + sum(
        e["dropped"] for e in trace.events
    )


def test_one_of_two_stops(
    host: Host, enabled: Client, ask: Callable[..., Any], tracing: Callable[..., Trace]
) -> None:
    actor = host.actor()
    actor.do(mix.serve)
    fast = tracing(lambda: actor.do(mix.storm, 1))
    slow = tracing(lambda: actor.do(mix.storm, 1))
    os.kill(slow.pid, signal.SIGSTOP)
    before = len(slow.events)

    actor.do(mix.storm, CONNECTIONS)
    # the daemon answers, and the other subscriber gets everything it has room for
    assert ask("stats")["accelerated_connections"] > CONNECTIONS
    # what found the ring buffer full is counted, and told only with a later event
    expected = 3 * CONNECTIONS - ask("stats")["dropped_events"]
    fast.until(lambda events: shown(fast) >= expected)

    os.kill(slow.pid, signal.SIGCONT)
    slow.until(lambda events: shown(slow) - before >= expected)
    got = sum(e["event"] != "dropped" for e in slow.events) - before
    assert got <= WINDOW + WINDOW // 2
    assert any(e["dropped"] for e in slow.events)
    actor.do(mix.stop)
