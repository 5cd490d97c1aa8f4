"""Off means off: no command that reads starts the daemon, and disable works without one."""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.checkout import REPOSITORY
from support.daemon import load, pins, stall
from support.daemon.bus import SHIPPED_POLICY, private_bus
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess

DONE, FAILED, NOT_RUNNING = 0, 1, 3
READING = (
    ("status",),
    ("stats",),
    ("list",),
    ("trace",),
    ("check",),
    ("bench",),
    ("explain", "--port", "1"),
    ("learned",),
    ("learned", "--all"),
    ("reload",),
)


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    """Has a line for each time that the bus has started the service."""
    return tmp_path / "starts"


@pytest.fixture
def bus_that_activates(tmp_path: Path, starts: Path) -> Iterator[str]:
    """What the bus starts for the name writes a line, and ends."""
    services = tmp_path / "services"
    services.mkdir()
    program = tmp_path / "service"
    program.write_text(f"#!/bin/sh\necho started >> {starts}\nexit 1\n")
    program.chmod(0o755)
    (services / "org.sockredir.service").write_text(
        f"[D-BUS Service]\nName=org.sockredir\nExec={program}\nUser=root\n"
    )
    policy = SHIPPED_POLICY.read_text().replace(
        "</busconfig>", f"<servicedir>{services}</servicedir></busconfig>"
    )
    with private_bus(policy) as address:
        yield address


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_reading_starts_nothing(
    host: Host, bus_that_activates: str, starts: Path, arguments: tuple[str, ...]
) -> None:
    host.configure()
    done = host.ctl(*arguments, bus=bus_that_activates)
    assert (done.returncode, done.stdout) == (NOT_RUNNING, "")
    assert len(done.stderr.splitlines()) == 1
    assert "not running" in done.stderr
    assert not starts.exists()


def test_enable_does(host: Host, bus_that_activates: str, starts: Path) -> None:
    """It shows that the other tests would notice a start."""
    host.configure()
    assert host.ctl("enable", bus=bus_that_activates).returncode == NOT_RUNNING
    assert starts.read_text() == "started\n"


def test_activation_is_by_the_alias_of_an_enabled_unit() -> None:
    activation = configparser.ConfigParser()
    activation.read(REPOSITORY / "dbus" / "org.sockredir.service")
    unit = (REPOSITORY / "systemd" / "sockredird.service").read_text()
    alias = activation["D-BUS Service"]["SystemdService"]
    assert alias == "dbus-org.sockredir.service"
    assert f"Alias={alias}" in unit.partition("[Install]")[2].splitlines()


def test_status_says_what_is_left(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    """By itself, and in the log of the daemon that stops."""
    daemon.stop()
    (last,) = [line for line in daemon.stderr.splitlines() if "stopping" in line]
    assert "acceleration stays on" in last
    assert "sockredirctl disable" in last
    done = host.ctl("status")
    assert done.returncode == NOT_RUNNING
    assert "acceleration is on without it" in done.stderr
    assert f"{host.root}/generation-1" in done.stderr
    assert "sockredirctl disable" in done.stderr


def test_status_says_that_nothing_is(host: Host, daemon: DaemonProcess) -> None:
    daemon.stop()
    assert "acceleration stays on" not in daemon.stderr
    done = host.ctl("status")
    assert "acceleration is off" in done.stderr
    assert "restored" not in done.stderr


def test_status_says_what_comes_back(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    """As after a boot with the unit disabled."""
    daemon.stop()
    pins.tear_down(host.root)
    done = host.ctl("status")
    assert "acceleration is off" in done.stderr
    assert "acceleration is restored when sockredird starts" in done.stderr


@pytest.mark.parametrize("bus", ["", "unix:path=/nonexistent"], ids=["bus", "no bus"])
@pytest.mark.parametrize("file", ["right", "wrong"])
def test_disable_without_a_daemon(
    host: Host, daemon: DaemonProcess, enabled: Client, bus: str, file: str
) -> None:
    traffic = host.actor()
    traffic.do(load.start, 2)
    traffic.do(load.advance, 10)
    daemon.stop()
    if file == "wrong":
        path = host.configure()
        path.write_text(path.read_text().replace("[scope]", "[scope]\nnonsense = 1"))
    done = host.ctl("disable", bus=bus)
    assert (done.returncode, done.stdout, done.stderr) == (DONE, "", "")
    assert pins.directories(host.root) == []
    traffic.do(load.advance, 10)
    traffic.do(load.finish)
    # and it stays off
    host.configure()
    host.start()
    assert host.client().get("State") == "disabled"


@pytest.mark.parametrize("host", [{"limits": {"drain_timeout_s": 0.3}}], indirect=True)
def test_disable_without_a_daemon_of_unread_data(
    host: Host, daemon: DaemonProcess, enabled: Client
) -> None:
    """It goes on when a daemon starts."""
    reader = host.actor()
    reader.do(stall.send_unread, 100_000)
    daemon.stop()
    done = host.ctl("disable")
    assert done.returncode == DONE
    assert "draining: " in done.stderr
    left = host.ctl("status").stderr
    assert "new connections are not accelerated" in left
    host.start()
    client = host.client()
    client.follow_state()
    assert client.get("State") == "draining"
    reader.do(stall.read_all)
    client.await_state("disabled")


def test_disable_beside_a_daemon_that_the_bus_does_not_know(
    host: Host, daemon: DaemonProcess, enabled: Client
) -> None:
    done = host.ctl("disable", bus="unix:path=/nonexistent")
    assert done.returncode == FAILED
    assert f"pid {daemon.pid}" in done.stderr
    assert enabled.get("State") == "enabled"
