"""sockredirctl: what it prints where, and how it exits."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from support.daemon import load, pins
from support.daemon.client import INTERFACE, PROPERTIES, Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.waiting import eventually

COMMANDS = ("enable", "disable", "reload", "status", "stats", "check", "trace")
NOWHERE = "unix:path=/nonexistent"
DONE, FAILED, USAGE, NOT_RUNNING, TIMED_OUT = 0, 1, 2, 3, 5


def check_failed(done: subprocess.CompletedProcess[str], status: int) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("sockredirctl: ")


def test_enable_and_disable(host: Host, client: Client) -> None:
    for command, state in (("enable", "enabled"), ("disable", "disabled")):
        for again in (False, True):
            done = host.ctl(command)
            assert done.returncode == DONE
            assert ("already" in done.stderr) == (again and command == "disable")
            assert (host.scope in done.stdout) == (command == "enable")
            assert client.get("State") == state


def test_enable_with_a_scope(host: Host, client: Client) -> None:
    assert host.ctl("enable", "--port", "7", "--port", "8").returncode == DONE
    assert client.get("Scope")["only_ports"] == [7, 8]
    assert host.ctl("enable", "--cgroup", f"{host.scope}/").returncode == DONE
    check_failed(host.ctl("enable", "--cgroup", "/srt-none"), FAILED)


def test_json(host: Host, enabled: Client) -> None:
    stats = host.ctl("stats", "--json")
    assert (stats.returncode, stats.stderr) == (DONE, "")
    assert json.loads(stats.stdout) == enabled.call("Stats")
    status = host.ctl("status", "--json")
    assert (status.returncode, status.stderr) == (DONE, "")
    shown = json.loads(status.stdout)
    properties = enabled.call("GetAll", "s", INTERFACE, interface=PROPERTIES)
    live = properties.pop("LiveConnections")  # looks for live connections go on
    assert shown.pop("LiveConnections").keys() == live.keys()
    assert shown == {**properties, "Stats": enabled.call("Stats")}


def test_text(host: Host, enabled: Client) -> None:
    host.actor().do(load.echo_once, 50, 64)
    status = host.ctl("status")
    assert (status.returncode, status.stderr) == (DONE, "")
    assert "State: enabled since" in status.stdout
    assert host.scope in status.stdout
    assert "100 messages" in status.stdout
    stats = host.ctl("stats")
    assert (stats.returncode, stats.stderr) == (DONE, "")
    lines = dict(line.split() for line in stats.stdout.splitlines())
    assert {name: int(value) for name, value in lines.items()} == enabled.call("Stats")


def test_help_lists_the_commands(host: Host) -> None:
    done = host.ctl("--help")
    assert (done.returncode, done.stderr) == (DONE, "")
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ")}
    assert set(COMMANDS) <= listed
    for command in COMMANDS:
        assert host.ctl(command, "--help").returncode == DONE


def test_version(host: Host) -> None:
    done = host.ctl("--version")
    assert (done.returncode, done.stderr) == (DONE, "")
    assert done.stdout.startswith("sockredirctl ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nothing",),
        ("enable", "--json"),
        ("enable", "--port", "0"),
        ("enable", "--port", "no-such-service"),
        ("enable", "--port", "6379,"),
        ("list", "--limit", "-1"),
        ("explain", "127.0.0.1:1"),
        ("stats", "--timeout", "0"),
        ("stats", "--timeout", "soon"),
        ("stats", "--timeout", "nan"),
        ("stats", "extra"),
    ],
    ids=" ".join,
)
def test_usage(host: Host, arguments: tuple[str, ...]) -> None:
    done = host.ctl(*arguments)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr.startswith("usage: ")
    assert "Traceback" not in done.stderr


# disable does without a daemon, and without a bus: tests/bus/sockredirctl/test_off.py
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "disable"])
def test_no_daemon(host: Host, command: str) -> None:
    done = host.ctl(command)
    check_failed(done, NOT_RUNNING)
    assert "not running" in done.stderr


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "disable"])
def test_no_bus(host: Host, command: str) -> None:
    done = host.ctl(command, bus=NOWHERE)
    check_failed(done, NOT_RUNNING)
    assert "bus" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_timeout(host: Host, daemon: DaemonProcess, command: str) -> None:
    daemon.signal(signal.SIGSTOP)
    done = host.ctl(command, "--timeout", "0.3")
    daemon.signal(signal.SIGCONT)
    check_failed(done, TIMED_OUT)


def test_failure(host: Host, client: Client) -> None:
    host.overrides["scope"] = {"cgroup": "/srt-none"}
    host.configure()
    check_failed(host.ctl("reload"), FAILED)


def test_daemon_killed_during_a_call(host: Host, daemon: DaemonProcess) -> None:
    daemon.signal(signal.SIGSTOP)
    with host.ctl_process("stats") as process:
        client = host.client()

        def connected() -> bool:
            names = client.ask_bus("ListNames", "")
            return len([name for name in names if name.startswith(":")]) == 3

        eventually(connected, "sockredirctl is on the bus beside us and the daemon")
        daemon.kill()
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == NOT_RUNNING
    assert len(stderr.splitlines()) == 1
    assert pins.directories(host.root) == []
