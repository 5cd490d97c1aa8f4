"""What the tests read from the daemon.

By busctl: an emulated processor takes seconds to start a Python program, as sockredirctl is one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shell import sh

# More than its own 25 s: the compiler takes longer where the processor is emulated, and busy
PATIENCE_S = 120.0
BUSCTL = "busctl --timeout=330 {} org.sockredir /org/sockredir org.sockredir.Manager1 {}"


def called(call: str) -> Any:
    """What a method returns: `call` is its name, and what busctl wants of arguments."""
    answer = json.loads(sh(BUSCTL.format("--json=short call", call)))
    return _plain(answer["data"][0]) if answer else None


def property_of(name: str) -> Any:
    return _plain(json.loads(sh(BUSCTL.format("--json=short get-property", name)))["data"])


def soon(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def _plain(value: Any) -> Any:
    """Without the types of variants."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and value.keys() == {"type", "data"}:
        return _plain(value["data"])
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def state() -> str:
    return str(property_of("State"))


def loaded(patience_s: float = 30.0) -> str:
    """BPF programs of ours in the kernel, which frees those of detect.c some time after they go."""
    deadline = time.monotonic() + patience_s
    while found := sh("bpftool prog show | grep -E 'name (sockredir|textbook)' || true"):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return found


def counters() -> dict[str, int]:
    values: dict[str, int] = called("Stats")
    return values


def accelerated_now() -> int:
    return counters()["active_connections"]


def redirected_both_ways() -> list[dict[str, Any]]:
    """Of the accelerated connections, those on which a message of each end was redirected."""
    return [
        found
        for found in called("Connections u 0")
        if found.get("client_sent_messages") and found.get("server_sent_messages")
    ]


@dataclass
class Change:
    """Of the counters, once the with block has ended."""

    connections: int = 0  # paired as they were established: those that left may be joined again
    messages: int = 0


@contextmanager
def counted() -> Iterator[Change]:
    change = Change()
    before = counters()
    yield change
    after = counters()
    more = {name: after[name] - before[name] for name in after}
    change.connections = more["accelerated_connections"] - more["joined_connections"]
    change.messages = more["redirected_messages"]
