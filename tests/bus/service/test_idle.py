"""What the daemon costs while nothing happens to it: no wake-ups, no leaks, little memory."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import cgroups
from support.daemon import load
from support.daemon.client import INTERFACE, PROPERTIES, Client, message
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.waiting import eventually

IDLE_S = 5.0
WAKEUPS_ALLOWED = 5  # a look for live connections takes three, once in 15 s
MEMORY_LIMIT = 60 << 20


@pytest.fixture
def cgroup(capable: None) -> Iterator[Path]:
    """One with no others beside it, whose removal, by other runs of the tests, wakes the daemon."""
    outer = cgroups.create()
    inner = outer / "inner"
    inner.mkdir()
    yield inner
    cgroups.remove(inner)
    cgroups.remove(outer)


def context_switches(pid: int) -> int:
    """Of all threads of a process, voluntary and not."""
    return sum(
        int(count)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for count in re.findall(r"ctxt_switches:\s*(\d+)", (thread / "status").read_text())
    )


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


# Where FIONREAD leaves out what comes by TCP, the daemon looks after each revalidation
# (bpf/carry/redirect.c).
@pytest.mark.parametrize("host", [{"limits": {"revalidate_s": 3600.0}}], indirect=True, ids=["-"])
def test_sleeps_while_connections_are_accelerated(
    host: Host, daemon: DaemonProcess, enabled: Client
) -> None:
    traffic = host.actor()
    # with a pause, as a peer that loses its processor inside a call has the daemon walk
    traffic.do(load.start, 1, 0.002)
    traffic.do(load.advance, 10)
    redirected = enabled.call("Stats")["redirected_messages"]
    # the count is seen counting: an answer takes the daemon at least one wake-up
    before = context_switches(daemon.pid)
    enabled.get("State")
    assert context_switches(daemon.pid) > before

    def wakeups() -> int:
        before = context_switches(daemon.pid)
        time.sleep(IDLE_S)
        return context_switches(daemon.pid) - before

    # on a busy machine that may happen all the same
    assert any(wakeups() <= WAKEUPS_ALLOWED for _ in range(5))
    assert enabled.call("Stats")["redirected_messages"] > redirected + 1000
    traffic.do(load.finish)


def test_descriptors_do_not_leak(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    enabled.call("Stats")
    before = descriptors(daemon.pid)
    for _ in range(20):
        enabled.call_all(
            *[message("Stats") for _ in range(5)],
            *[message("Get", "ss", INTERFACE, "State", interface=PROPERTIES) for _ in range(4)],
            message("Nothing"),
        )
    assert descriptors(daemon.pid) == before
    for _ in range(3):
        enabled.call("Disable")
        enabled.call("Enable")
    # what comes after the answer opens some, too
    eventually(lambda: descriptors(daemon.pid) == before, f"{before} descriptors again")


def test_memory_after_enable(daemon: DaemonProcess, enabled: Client) -> None:
    enabled.call("Stats")
    resident = daemon.resident_bytes
    print(f"{resident / (1 << 20):.1f} MiB resident")
    assert resident < MEMORY_LIMIT


def test_watchdog(host: Host) -> None:
    daemon = host.start(WATCHDOG_USEC="200000")
    for _ in range(3):
        daemon.await_message("WATCHDOG=1", timeout=10)


def test_no_watchdog_unless_asked_for(daemon: DaemonProcess, enabled: Client) -> None:
    assert "WATCHDOG=1" not in daemon.messages


def test_status_for_systemd(host: Host, daemon: DaemonProcess, client: Client) -> None:
    assert "STATUS=Acceleration disabled" in daemon.messages[-1]
    client.call("Enable")
    assert "STATUS=Acceleration enabled" in daemon.messages[-1]
    client.call("Disable")
    assert "STATUS=Acceleration disabled" in daemon.messages[-1]
