"""sockredird --restore: what a boot does before there is a bus, for the daemon to adopt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from dbus_next import Variant

from support.daemon import load, pins
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import COMMAND, DaemonProcess, environment

NO_BUS = "unix:path=/nonexistent"
UNAVAILABLE = os.EX_UNAVAILABLE


def restore(host: Host, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--restore", "--config", str(host.directory / "sockredird.toml")],
        env=environment(NO_BUS, **more),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def booted(host: Host, daemon: DaemonProcess, enabled: Client) -> Host:
    """Acceleration is remembered, and nothing is pinned: as after a boot."""
    daemon.stop()
    pins.tear_down(host.root)
    assert pins.directories(host.root) == []
    return host


def test_before_the_daemon(booted: Host) -> None:
    done = restore(booted)
    assert done.returncode == 0, done.stderr
    assert pins.directories(booted.root) == ["generation-1"]
    traffic = booted.actor()
    traffic.do(load.start, 2)
    traffic.do(load.advance, 10)
    ids = pins.ids(booted.root)
    booted.start()
    client = booted.client()
    assert (client.get("State"), client.get("Problem")) == ("enabled", "")
    assert pins.ids(booted.root) == ids
    stats = client.call("Stats")
    assert (stats["accelerated_connections"], stats["active_connections"]) == (2, 2)
    traffic.do(load.finish)


def test_the_compiler_is_for_the_daemon(booted: Host, tmp_path: Path) -> None:
    """It takes seconds, or a minute, and every service would wait for it."""
    done = restore(booted, CACHE_DIRECTORY=str(tmp_path / "empty"))
    assert done.returncode == 0
    assert "left to sockredird.service" in done.stderr
    assert pins.directories(booted.root) == []


def test_what_is_off_stays_off(host: Host, daemon: DaemonProcess) -> None:
    daemon.stop()
    done = restore(host)
    assert (done.returncode, done.stderr) == (0, "")
    assert pins.directories(host.root) == []


def test_units_are_for_the_daemon(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    """No bus says where they are."""
    enabled.call("EnableWith", "a{sv}", {"only_ports": Variant("au", [7])})
    daemon.stop()
    pins.tear_down(host.root)
    host.overrides["scope"] = {"units": ["a.service"]}
    host.configure()
    done = restore(host)
    assert done.returncode == 0
    assert "can ask systemd where the units are" in done.stderr
    assert pins.directories(host.root) == []


def test_a_daemon_runs(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    ids = pins.ids(host.root)
    done = restore(host)
    assert done.returncode == UNAVAILABLE
    assert f"pid {daemon.pid}" in done.stderr
    assert pins.ids(host.root) == ids
