"""Not tests but figures; pytest does not collect this file by itself. As root:

/usr/bin/python3 -m pytest -s -q tests/daemon/figures.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from . import load
from .client import Client
from .conftest import Host
from .process import DaemonProcess
from .test_idle import resident_kib

RUNS = 10


def seconds(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def show(what: str, values: list[float]) -> None:
    middle = statistics.median(values)
    print(f"\n{what}: median {middle:.3f} s of {min(values):.3f} to {max(values):.3f}")


def test_restart(host: Host) -> None:
    """From SIGKILL to READY=1, with accelerated connections."""
    daemon = host.start()
    host.client().call("Enable")
    traffic = host.actor()
    traffic.do(load.start, 2, 0.01)
    values = []
    for _ in range(RUNS):
        start = time.monotonic()
        daemon.kill()
        daemon = host.start()
        values.append(time.monotonic() - start)
    show("restart", values)


def test_cold_enable(host: Host) -> None:
    """The first Enable of a fresh daemon, and its Disable without connections."""
    enable, disable, memory = [], [], []
    for _ in range(RUNS // 2):
        daemon = host.start()
        with Client(host.bus) as client:
            enable.append(seconds(lambda: client.call("Enable")))
            client.call("Stats")
            memory.append(resident_kib(daemon.pid) / 1024)
            disable.append(seconds(lambda: client.call("Disable")))
        daemon.stop()
    show("cold Enable", enable)
    show("Disable, no connections", disable)
    print(f"\nresident after Enable: {statistics.median(memory):.1f} MiB")


def test_disable(host: Host, daemon: DaemonProcess, client: Client) -> None:
    """With 16 busy connections."""
    traffic = host.actor()
    values = []
    for _ in range(RUNS // 2):
        client.call("Enable")
        traffic.do(load.start, 16, 0.001)
        traffic.do(load.advance, 20)
        values.append(seconds(lambda: client.call("Disable")))
        traffic.do(load.finish)
    show("Disable, 16 busy connections", values)
