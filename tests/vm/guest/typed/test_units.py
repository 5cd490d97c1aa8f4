"""Scope by systemd units, with systemd itself: found, and followed when they restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import TIMEOUT_S, Failed, sh
from status import counters, property_of, state

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
ENABLE = "sockredirctl enable"
FIRST, SECOND = "srt-first.service", "srt-second.service"


@pytest.fixture(scope="module", autouse=True)
def talker() -> Iterator[None]:
    script = Path("/root/talker.py")
    script.write_text(TALKER)
    yield
    script.unlink()
    sh("sockredirctl disable")


@pytest.fixture(autouse=True)
def stopped(running: None) -> Iterator[None]:
    yield
    sh(f"systemctl stop {FIRST} {SECOND} 2>&1 || true")


@pytest.fixture
def only_first(running: None) -> None:
    """Enabled for that unit, by this test or by one before it."""
    if set(units()) != {FIRST}:
        sh(f"sockredirctl disable; {ENABLE} --wait --unit {FIRST}")


def start(unit: str) -> None:
    sh(f"systemd-run --quiet --unit={unit} /usr/bin/python3 /root/talker.py")


def await_acceleration() -> None:
    """Returns once another connection has been accelerated."""
    before = counters()["accelerated_connections"]
    deadline = time.monotonic() + TIMEOUT_S
    while counters()["accelerated_connections"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def units() -> dict[str, str]:
    """The cgroup of each in scope."""
    found: dict[str, str] = property_of("Units")
    return found


def await_units(running: set[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while (found := {name for name, cgroup in units().items() if cgroup}) != running:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def test_a_unit_is_found(disabled: None) -> None:
    start(FIRST)
    assert f"Accelerated: loopback connections in {FIRST}," in sh(f"{ENABLE} --unit srt-first")
    assert units() == {FIRST: f"/system.slice/{FIRST}"}
    await_acceleration()


@pytest.mark.userland
def test_only_that_unit(disabled: None) -> None:
    start(SECOND)
    with pytest.raises(Failed):
        sh(f"{ENABLE} --unit {FIRST}")
    assert state() == "disabled"
    said = sh(f"{ENABLE} --wait --unit {FIRST}")
    assert f"not running yet; accelerated when they start: {FIRST}\n" in said
    before = counters()["accelerated_connections"]
    sh("sleep 5")
    assert counters()["accelerated_connections"] == before


@pytest.mark.userland
def test_restarts_are_followed(only_first: None) -> None:
    for _ in range(2):
        start(FIRST)
        await_units({FIRST})
        await_acceleration()
        sh(f"systemctl stop {FIRST}")
        await_units(set())


@pytest.mark.userland
def test_daemon_reexec(only_first: None) -> None:
    sh("systemctl daemon-reexec")
    start(FIRST)
    await_units({FIRST})
    await_acceleration()


@pytest.mark.userland
def test_a_slice(disabled: None) -> None:
    sh(f"{ENABLE} --unit system.slice")
    start(FIRST)
    await_acceleration()


@pytest.mark.userland
def test_an_excluded_service(disabled: None) -> None:
    sh(f"{ENABLE} --exclude-cgroup /system.slice/{FIRST} --cgroup /system.slice")
    start(FIRST)
    before = counters()["accelerated_connections"]
    sh("sleep 5")
    assert counters()["accelerated_connections"] == before
    start(SECOND)
    await_acceleration()
