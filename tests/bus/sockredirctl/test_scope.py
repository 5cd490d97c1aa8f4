"""The commands print the scope in force, where its keys come from, and what a change of it cost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import load, pins
from support.daemon.bus import SHIPPED_POLICY, private_bus
from support.daemon.client import TIMEOUT_S, Client
from support.daemon.host import Host
from support.systemd import NAME, Systemd

DONE, FAILED, NOTHING = 0, 1, 6
POLICY = SHIPPED_POLICY.read_text().replace(
    "</busconfig>",
    f"""
  <policy user="root"><allow own="{NAME}"/></policy>
  <policy context="default"><allow send_destination="{NAME}"/></policy>
</busconfig>
""",
)
RUNS, OTHER = "postgresql@17-main.service", "haproxy.service"
WRAPPER = "postgresql.service"  # active, but its processes are in other units


@pytest.fixture(scope="module")
def bus_with_systemd() -> Iterator[str]:
    with private_bus(POLICY) as address:
        yield address


@pytest.fixture
def systemd(host: Host, bus_with_systemd: str) -> Iterator[Systemd]:
    """With two units that run and some that do not."""
    host.bus = bus_with_systemd
    systemd = Systemd(bus_with_systemd, host.cgroup)
    for unit in (RUNS, OTHER):
        host.actor(systemd.start(unit))
    systemd.exit(WRAPPER)
    systemd.install("redis-server.service", alias="redis.service")
    yield systemd
    host.stack.close()
    systemd.close()


@pytest.fixture
def client(host: Host, systemd: Systemd) -> Client:
    host.start()
    return host.client()


def test_the_scope_is_said_back(host: Host, client: Client) -> None:
    host.overrides["scope"] = {"exclude_ports": [7]}
    host.configure()
    client.call("Reload")
    done = host.ctl("enable", "--port", "6379,5432", "--exclude-port", "9")
    assert (done.returncode, done.stderr) == (DONE, "")
    first, second, third = done.stdout.splitlines()
    assert first == (
        f"Accelerated: loopback connections in cgroup {host.scope}, "
        "ports 6379, 5432 only, except ports 7, 9."
    )
    assert second.startswith("From options: only_ports; from the file: cgroup")
    assert second.endswith("; from the file and options: exclude_ports.")
    assert third.startswith("No established connection has joined yet; ")
    sources = client.get("Sources")
    assert sources.keys() == client.get("Scope").keys()
    known = ("cgroup", "units", "addresses", "exclude_ports", "only_ports", "exclude_units")
    assert [sources[key] for key in known] == [
        *("file", "default", "default", "file+option", "option", "default")
    ]
    status = " ".join(host.ctl("status").stdout.split())
    assert "From options: only_ports; from the file: cgroup" in status
    assert "(options last until disable)" in status
    assert json.loads(host.ctl("status", "--json").stdout)["Sources"] == sources


def test_two_scopes_at_once(host: Host, client: Client) -> None:
    """One of them is in force in the end, and each caller is told whether it is his."""
    with (
        host.ctl_process("enable", "--no-block", "--port", "7") as one,
        host.ctl_process("enable", "--no-block", "--port", "8") as two,
    ):
        said = {7: one.communicate(timeout=TIMEOUT_S), 8: two.communicate(timeout=TIMEOUT_S)}
    assert (one.returncode, two.returncode) == (0, 0), said
    (in_force,) = client.get("Scope")["only_ports"]
    for port, (output, errors) in said.items():
        own = f"port {port} only" in output
        assert own or "somebody else has changed the scope in the meantime" in errors, said
        assert own or port != in_force
    assert client.get("State") == "enabled"
    assert len(pins.directories(host.root)) == 1


def test_what_was_given_lasts_until_it_is_dropped(host: Host, client: Client) -> None:
    """One rule: enable alone keeps it, so that repairing never widens the scope."""
    assert host.ctl("enable", "--port", "7").returncode == DONE
    again = host.ctl("enable")
    assert "port 7 only" in again.stdout
    assert "sockredirctl enable --configured drops the options" in again.stdout
    host.overrides["scope"] = {"exclude_ports": [9]}
    host.configure()
    reloaded = host.ctl("reload")
    assert "port 7 only, except port 9" in reloaded.stdout
    dropped = host.ctl("enable", "--configured")
    assert "port 7" not in dropped.stdout
    assert "except port 9." in dropped.stdout
    assert "drops the options" not in dropped.stdout


def test_added_exclusions_follow_the_file(host: Host, client: Client) -> None:
    host.ctl("enable", "--exclude-port", "echo", "--exclude-cgroup", "/user.slice")
    assert client.get("Scope")["exclude_ports"] == [21, 23, 513, 514, 7]
    host.overrides["scope"] = {"exclude_ports": [9], "exclude_cgroups": ["/a"]}
    host.configure()
    client.call("Reload")
    assert client.get("Scope")["exclude_ports"] == [9, 7]
    assert client.get("Scope")["exclude_cgroups"] == ["/a", "/user.slice"]


def test_to_exclude_never_accelerates_more(host: Host, client: Client) -> None:
    host.ctl("enable", "--port", "7,8")
    done = host.ctl("enable", "--exclude-port", "8")
    assert "ports 7, 8 only, except ports 21, 23, 513, 514, 8." in done.stdout
    done = host.ctl("enable", "--exclude-port", "9")
    assert "ports 7, 8 only, except ports 21, 23, 513, 514, 8, 9." in done.stdout
    done = host.ctl("enable", "--configured", "--exclude-port", "9")
    assert "only" not in done.stdout
    assert "except ports 21, 23, 513, 514, 9." in done.stdout
    done = host.ctl("enable", "--port", "7")
    assert "port 7 only, except ports 21, 23, 513, 514." in done.stdout


def test_a_change_says_how_many_left(host: Host, client: Client) -> None:
    assert "gone back to TCP" not in host.ctl("enable").stdout
    traffic = host.actor()
    traffic.do(load.start, 3)
    traffic.do(load.advance, 10)
    assert "gone back to TCP" not in host.ctl("enable").stdout
    changed = host.ctl("enable", "--exclude-port", "7")
    assert "3 connections have gone back to TCP" in changed.stdout
    found = host.ctl("explain", "--pid", str(traffic.pid))
    assert found.returncode == DONE
    assert "before acceleration was enabled" not in found.stdout
    traffic.do(load.finish)


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("postgresql", ["active (exited)", "no processes", f"did you mean {RUNS}?"]),
        ("postgresql@.service", ["template", f"did you mean {RUNS}?"]),
        ("redis-server", ["redis-server.service is not running (inactive)", "--wait"]),
        ("redis", ["redis.service is not running (inactive)", "--wait"]),
        ("haprosy", ["there is no unit haprosy.service", f"did you mean {OTHER}?"]),
        ("something-else", ["there is no unit something-else.service"]),
    ],
)
def test_a_unit_that_cannot_be_meant(
    host: Host, client: Client, unit: str, words: list[str]
) -> None:
    client.call("Enable")
    scope, ids = client.get("Scope"), pins.ids(host.root)
    done = host.ctl("enable", "--unit", f"{RUNS},{unit}")
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr
    assert (client.get("Scope"), pins.ids(host.root)) == (scope, ids)


def test_units_by_their_own_names(host: Host, client: Client) -> None:
    done = host.ctl("enable", "--unit", "postgresql@17-main", "--unit", "redis,later", "--wait")
    assert done.returncode == DONE
    assert client.get("Scope")["units"] == [RUNS, "redis-server.service", "later.service"]
    waiting = "not running yet; accelerated when they start: redis-server.service, later.service"
    assert waiting in done.stderr


def test_an_excluded_unit(host: Host, systemd: Systemd, client: Client) -> None:
    host.ctl("enable", "--exclude-unit", "haproxy,redis-server")
    assert client.get("Scope")["exclude_units"] == [OTHER, "redis-server.service"]
    inside, outside = (host.actor(host.cgroup / unit) for unit in (RUNS, OTHER))
    for actor in (inside, outside):
        actor.do(load.echo_once, 50, 64)
    assert client.call("Stats")["accelerated_connections"] == 1
    outside.do(load.start, 1)
    answers = json.loads(host.ctl("explain", "--unit", "haproxy", "--json").stdout)
    assert {answer["state"] for answer in answers} == {"tcp"}
    # one that is not there is a mistake, as there is nothing to wait for
    assert "there is no unit" in host.ctl("enable", "--exclude-unit", "haprosy").stderr
    outside.do(load.finish)


def test_which_process_or_unit(host: Host, systemd: Systemd, client: Client) -> None:
    client.call("Enable")
    actor = host.actor(host.cgroup / RUNS)
    actor.do(load.start, 2, 0.05)
    actor.do(load.advance, 1)
    ours = set(actor.do(load.clients))
    ways = (
        ("--pid", str(actor.pid)),
        ("--pid", RUNS),
        ("--unit", "postgresql@17-main"),
        ("--unit", f"{host.scope}/{RUNS}"),
        ("--pid", Path(f"/proc/{actor.pid}/comm").read_text().strip()),
    )
    for way in ways:
        for command in ("list", "explain"):
            found = host.ctl(command, *way, "--json")
            assert found.returncode == DONE, found.stderr
            flows = {c["client"] for c in json.loads(found.stdout) if c.get("kind") != "listener"}
            # other processes of this host may have that name, too
            assert flows == ours or (way == ways[-1] and flows > ours), (command, way)
    actor.do(load.finish)


@pytest.mark.parametrize("command", ["list", "explain"])
@pytest.mark.parametrize(
    ("way", "words"),
    [
        (("--unit", "haprosy"), "there is no unit haprosy.service"),
        (("--unit", "redis-server"), "redis-server.service is not running (inactive)"),
        (("--pid", "no-such-program"), "there is no unit no-such-program.service, and no process"),
        (("--pid", "4194304"), "there is no process 4194304"),
        (("--port", "1"), "no such"),
    ],
)
def test_nothing_is_found(
    host: Host, client: Client, command: str, way: tuple[str, str], words: str
) -> None:
    client.call("Enable")
    done = host.ctl(command, *way)
    assert (done.returncode, done.stdout) == (NOTHING, "")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


def test_nothing_is_found_while_disabled(host: Host, client: Client) -> None:
    for arguments in (("list", "--port", "1"), ("explain", "--pid", str(os.getpid()))):
        done = host.ctl(*arguments)
        assert (done.returncode, done.stdout) == (NOTHING, "")
        assert "acceleration is disabled" in done.stderr
    idle = host.ctl("list")  # nothing in particular was asked for
    assert (idle.returncode, idle.stdout) == (DONE, "")
    assert "acceleration is disabled" in idle.stderr


def test_trace_says_that_nothing_will_come(host: Host, client: Client) -> None:
    with host.ctl_process("trace") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("acceleration is disabled: no new connection")
