"""Scope by systemd units, with systemd itself: found, and followed when they restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import sh
from status import counters

# Each makes a connection to itself again and again.
TALKER = """
import socket, time
while True:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server = listener.accept()[0]
    for number in range(50):
        client.sendall(b"x")
        assert server.recv(10) == b"x"
    client.close()
    server.close()
    time.sleep(0.5)
"""
ENABLE = "sockredirctl enable --timeout 150"  # see the fixture `enabled`
FIRST, SECOND = "srt-first.service", "srt-second.service"


@pytest.fixture(autouse=True)
def talker(running: None) -> Iterator[None]:
    script = Path("/root/talker.py")
    script.write_text(TALKER)
    yield
    sh(f"systemctl stop {FIRST} {SECOND} 2>&1 || true; sockredirctl disable")
    script.unlink()


def start(unit: str) -> None:
    sh(f"systemd-run --quiet --unit={unit} /usr/bin/python3 /root/talker.py")


def await_acceleration() -> None:
    """Returns once another connection has been accelerated; sh() fails if none is."""
    before = counters()["accelerated_connections"]
    value = "$(sockredirctl stats --json | jq .accelerated_connections)"
    if not sh("command -v jq || true"):
        value = "$(sockredirctl stats | awk '$1 == \"accelerated_connections\" {print $2}')"
    sh(f"while [ {value} -le {before} ]; do sleep 1; done")


def units() -> dict[str, str]:
    shown: dict[str, str] = json.loads(sh("sockredirctl status --json"))["Units"]
    return shown


def await_units(running: set[str]) -> None:
    for _ in range(60):
        if {name for name, cgroup in units().items() if cgroup} == running:
            return
        sh("sleep 1")
    raise AssertionError(f"{units()}, not {running}")


def test_a_unit_is_found(talker: None) -> None:
    start(FIRST)
    assert sh(f"{ENABLE} --unit srt-first") == ""
    assert units() == {FIRST: f"/system.slice/{FIRST}"}
    await_acceleration()


def test_only_that_unit(talker: None) -> None:
    start(SECOND)
    said = sh(f"{ENABLE} --unit {FIRST}")
    assert said == f"not running, and waited for: {FIRST}\n"
    before = counters()["accelerated_connections"]
    sh("sleep 5")
    assert counters()["accelerated_connections"] == before


def test_restarts_are_followed(talker: None) -> None:
    sh(f"{ENABLE} --unit {FIRST}")
    for _ in range(2):
        start(FIRST)
        await_units({FIRST})
        await_acceleration()
        sh(f"systemctl stop {FIRST}")
        await_units(set())


def test_daemon_reexec(talker: None) -> None:
    sh(f"{ENABLE} --unit {FIRST}")
    sh("systemctl daemon-reexec")
    start(FIRST)
    await_units({FIRST})
    await_acceleration()


def test_a_slice(talker: None) -> None:
    sh(f"{ENABLE} --unit system.slice")
    start(FIRST)
    await_acceleration()


def test_an_excluded_service(talker: None) -> None:
    sh(f"{ENABLE} --exclude-cgroup /system.slice/{FIRST} --cgroup /system.slice")
    start(FIRST)
    before = counters()["accelerated_connections"]
    sh("sleep 5")
    assert counters()["accelerated_connections"] == before
    start(SECOND)
    await_acceleration()
