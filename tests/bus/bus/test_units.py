"""Scope by systemd units: found on the bus, and followed as they start and stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from dbus_next import DBusError, Message, Variant

from sockredird.datapath import links
from support import cgroups
from support.daemon import load, pins
from support.daemon.bus import SHIPPED_POLICY, private_bus
from support.daemon.client import Client, plain
from support.daemon.host import Host
from support.systemd import NAME, Systemd
from support.waiting import eventually

POLICY = SHIPPED_POLICY.read_text().replace(
    "</busconfig>",
    f"""
  <policy user="root"><allow own="{NAME}"/></policy>
  <policy context="default"><allow send_destination="{NAME}"/></policy>
</busconfig>
""",
)
FIRST, SECOND = "first.service", "second@1.service"


@pytest.fixture(scope="module")
def bus_with_systemd() -> Iterator[str]:
    with private_bus(POLICY) as address:
        yield address


@pytest.fixture
def systemd(host: Host, bus_with_systemd: str) -> Iterator[Systemd]:
    """Its units' cgroups are below the test's; the daemon is not started yet."""
    host.bus = bus_with_systemd
    systemd = Systemd(bus_with_systemd, host.cgroup)
    yield systemd
    host.stack.close()  # ends the programs in the units
    systemd.close()


def scope_of(host: Host, *units: str) -> None:
    host.overrides["scope"] = {"units": list(units)}
    host.configure()


def units_are(client: Client, running: set[str]) -> None:
    def shown() -> bool:
        units: dict[str, str] = client.get("Units")
        return {name for name, path in units.items() if path} == running

    eventually(shown, f"{running} run: {client.get('Units')}")


def end_of(connection: str) -> Callable[[Message], bool]:
    """Recognises the event that a connection has ended, by the client's address."""

    def recognised(signal: Message) -> bool:
        said = plain(signal.body[0]) if signal.member == "Event" else {}
        return (said.get("event"), said.get("client")) == ("closed", connection)

    return recognised


def accelerated(client: Client) -> int:
    return int(client.call("Stats")["accelerated_connections"])


def test_a_unit_in_scope(host: Host, systemd: Systemd) -> None:
    inside = host.actor(systemd.start(FIRST))
    elsewhere = host.actor(systemd.start(SECOND))
    scope_of(host, FIRST)
    host.start()
    client = host.client()
    client.call("Enable")
    assert client.get("Scope")["units"] == [FIRST]
    assert client.get("Units") == {FIRST: f"{host.scope}/{FIRST}"}
    inside.do(load.echo_once, 50, 64)
    elsewhere.do(load.echo_once, 50, 64)
    host.actor().do(load.echo_once, 50, 64)
    stats = client.call("Stats")
    assert (stats["accelerated_connections"], stats["redirected_messages"]) == (1, 100)
    status = " ".join(host.ctl("status").stdout.split())
    assert f"loopback connections in {FIRST}, except port" in status


def test_restarts_are_followed(host: Host, systemd: Systemd) -> None:
    """Not running at first; each time it starts it has another cgroup."""
    scope_of(host, FIRST)
    daemon = host.start()
    client = host.client()
    client.call("Enable")
    assert client.get("State") == "enabled"
    assert client.get("Problem") == ""
    assert client.get("Units") == {FIRST: ""}
    assert f"{FIRST} (not running)" in " ".join(host.ctl("status").stdout.split())
    for start in range(1, 4):
        program = host.actor(systemd.start(FIRST))
        units_are(client, {FIRST})
        program.do(load.echo_once, 50, 64)
        assert accelerated(client) == start
        program.close()
        systemd.stop(FIRST)
        units_are(client, set())
        assert client.get("Problem") == ""
    assert "Traceback" not in daemon.stderr


def test_connections_outlive_their_cgroup(host: Host, systemd: Systemd) -> None:
    """A socket stays in the cgroup it was made in: its end is seen, though the unit has another."""
    program = host.actor(systemd.start(FIRST))
    scope_of(host, FIRST)
    host.start()
    client = host.client()
    client.call("Enable")
    client.call("Subscribe")
    program.do(load.start, 2)
    program.do(load.advance, 20)
    generation = host.root / pins.directories(host.root)[0]
    old = links.live(generation)
    program.do(cgroups.join, host.cgroup)
    systemd.stop(FIRST)
    new = host.actor(systemd.start(FIRST))
    eventually(lambda: links.live(generation) > old, "attached to both cgroups")
    before = client.call("Stats")["redirected_messages"]
    program.do(load.advance, 20)
    assert client.call("Stats")["redirected_messages"] >= before + 20
    assert client.get("Problem") == ""
    connections = program.do(load.clients)
    program.do(load.finish)
    for connection in connections:
        client.await_signal(end_of(connection))
    eventually(lambda: not links.live(generation) & old, "the kernel detaches the removed cgroup")
    new.do(load.echo_once, 50, 64)
    assert accelerated(client) == 3
    new.close()
    systemd.stop(FIRST)
    systemd.start(FIRST)
    eventually(
        lambda: not old & {path.name for path in links.pinned(generation)},
        "the pins of the removed cgroup are removed",
    )


@pytest.mark.parametrize("meanwhile", ["runs on", "restarts", "stops"])
def test_the_daemon_restarts(host: Host, systemd: Systemd, meanwhile: str) -> None:
    scope_of(host, FIRST, SECOND)
    systemd.start(SECOND)
    program = host.actor(systemd.start(FIRST))
    daemon = host.start()
    client = host.client()
    client.call("Enable")
    program.do(load.echo_once, 50, 64)
    daemon.stop()
    program.do(load.echo_once, 50, 64)  # the datapath goes on
    if meanwhile != "runs on":
        program.close()
        systemd.stop(FIRST)
    if meanwhile == "restarts":
        program = host.actor(systemd.start(FIRST))
    host.start()
    client = host.client()
    assert client.get("State") == "enabled"
    units_are(client, {SECOND} if meanwhile == "stops" else {FIRST, SECOND})
    if meanwhile == "stops":
        program = host.actor(systemd.start(FIRST))
        units_are(client, {FIRST, SECOND})
    program.do(load.echo_once, 50, 64)
    assert accelerated(client) == 3


def test_systemd_restarts(host: Host, systemd: Systemd, bus_with_systemd: str) -> None:
    """As systemctl daemon-reexec does: it leaves the bus and comes back."""
    scope_of(host, FIRST)
    host.start()
    client = host.client()
    client.call("Enable")
    systemd.close()
    again = Systemd(bus_with_systemd, host.cgroup)
    try:
        program = host.actor(again.start(FIRST))
        units_are(client, {FIRST})
        program.do(load.echo_once, 50, 64)
        assert accelerated(client) == 1
        program.close()
    finally:
        again.close()


def test_a_slice_and_a_service_in_it(host: Host, systemd: Systemd) -> None:
    """Their programs must not run twice for one socket."""
    outer = systemd.start(FIRST)
    inner = outer / SECOND
    inner.mkdir()
    systemd.reveal(SECOND, inner)
    scope_of(host, FIRST, SECOND)
    host.start()
    client = host.client()
    client.call("Enable")
    host.actor(inner).do(load.echo_once, 50, 64)
    stats = client.call("Stats")
    assert (stats["accelerated_connections"], stats["declined_connections"]) == (1, 0)
    host.stack.close()
    systemd.conceal(SECOND)
    inner.rmdir()


def test_from_one_unit_to_another_under_load(host: Host, systemd: Systemd) -> None:
    scope_of(host, FIRST)
    first, second = (host.actor(systemd.start(unit)) for unit in (FIRST, SECOND))
    host.start()
    client = host.client()
    client.call("Enable")
    for program in (first, second):
        program.do(load.start, 4, 0.002)  # without a pause they would leave no CPU to the compiler
        program.do(load.advance, 20)
    assert accelerated(client) == 4
    scope_of(host, SECOND)
    client.call("Reload")
    assert client.get("Units") == {SECOND: f"{host.scope}/{SECOND}"}
    for program in (first, second):
        program.do(load.advance, 20)
    stats = client.call("Stats")
    # those of the second unit join, sooner or later
    assert (pins.made(stats), stats["retired_disable"]) == (4, 4)
    for program in (first, second):
        program.do(load.finish)
    eventually(lambda: client.call("Stats")["map_entries"] == 0, "all of them have ended")
    before = client.call("Stats")["redirected_messages"]
    first.do(load.echo_once, 50, 64)
    second.do(load.echo_once, 50, 64)
    stats = client.call("Stats")
    assert (pins.made(stats), stats["redirected_messages"]) == (5, before + 100)


def test_by_command_line(host: Host, systemd: Systemd) -> None:
    program = host.actor(systemd.start(FIRST))
    host.start()
    client = host.client()
    done = host.ctl(
        *("enable", "--unit", "first", "--unit", SECOND, "--exclude-cgroup", "/user.slice"),
        *("--exclude-port", "7,echo", "--exclude-port", "9", "--addresses", "any", "--wait"),
    )
    waiting = f"not running yet; accelerated when they start: {SECOND}\n"
    assert (done.returncode, done.stderr) == (0, waiting)
    scope = client.get("Scope")
    assert scope == {
        "blocking_readers": "accelerate",
        "cgroup": host.scope,
        "units": [FIRST, SECOND],
        "addresses": "any",
        "exclude_ports": [21, 23, 513, 514, 7, 9],
        "only_ports": [],
        "exclude_cgroups": ["/user.slice"],
        "exclude_units": [],
    }
    status = " ".join(host.ctl("status").stdout.split())
    assert (
        f"Scope: connections on this host, of any address in {FIRST}, {SECOND} (not running), "
        "except cgroup /user.slice, except ports 21, 23, 513, 514, 7, 9" in status
    )
    program.do(load.echo_once, 50, 64)
    assert accelerated(client) == 1
    # a cgroup takes the place of units
    assert host.ctl("enable", "--cgroup", f"{host.scope}/{FIRST}").returncode == 0
    assert client.get("Units") == {}
    program.do(load.echo_once, 50, 64)
    assert accelerated(client) == 2
    assert host.ctl("enable", "--cgroup", "/", "--unit", "a").returncode == 2


def test_enabled_for_units_again(host: Host, systemd: Systemd) -> None:
    """systemd refuses to be subscribed to twice."""
    program = host.actor(systemd.start(SECOND))
    host.start()
    client = host.client()
    for unit in (FIRST, SECOND):
        waited = {"units": Variant("as", [unit]), "wait": Variant("b", True)}
        client.call("EnableWith", "a{sv}", waited)
        client.call("Disable")
    client.call("EnableWith", "a{sv}", {"units": Variant("as", [SECOND])})
    program.do(load.echo_once, 50, 64)
    assert accelerated(client) == 1


@pytest.mark.parametrize(
    "unit", ["re/dis", "a.timer", "a b.service", "../a.service", "", ".service"]
)
def test_no_unit_with_a_cgroup(host: Host, client: Client, unit: str) -> None:
    with pytest.raises(DBusError, match="units") as caught:
        client.call("EnableWith", "a{sv}", {"units": Variant("as", [unit])})
    assert caught.value.type == "org.sockredir.Error.InvalidConfig"
    assert client.get("State") == "disabled"


def test_without_systemd(host: Host, enabled: Client) -> None:
    """A bus without it: nothing changes."""
    program = host.actor()
    with pytest.raises(DBusError, match=r"scope\.cgroup") as caught:
        enabled.call("EnableWith", "a{sv}", {"units": Variant("as", [FIRST])})
    assert caught.value.type == "org.sockredir.Error.InvalidConfig"
    assert enabled.get("State") == "enabled"
    assert enabled.get("Scope")["units"] == []
    program.do(load.echo_once, 50, 64)
    assert accelerated(enabled) == 1
