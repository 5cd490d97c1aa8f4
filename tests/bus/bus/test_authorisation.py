"""Who may do what where there is no polkit: by the bus policy, and by the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dbus_next import DBusError, Message, MessageType, Variant

import sockredirctl.__main__
from support.daemon.bus import PERMISSIVE_POLICY, private_bus
from support.daemon.client import INTERFACE, NAME, PROPERTIES, Client, message
from support.daemon.host import Host
from support.daemon.users import as_nobody, main_as_nobody

INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
REFUSED_BY_BUS = "org.freedesktop.DBus.Error.AccessDenied"
REFUSED_BY_US = "org.sockredir.Error.AccessDenied"
TRIES = 50

FOR_ROOT: dict[str, Callable[[], Message]] = {
    "Enable": lambda: message("Enable"),
    "EnableWith": lambda: message("EnableWith", "a{sv}", {"only_ports": Variant("au", [7])}),
    "Disable": lambda: message("Disable"),
    "Subscribe": lambda: message("Subscribe"),
}
FOR_ALL: dict[str, Callable[[], Message]] = {
    "Stats": lambda: message("Stats"),
    "Get": lambda: message("Get", "ss", INTERFACE, "State", interface=PROPERTIES),
    "GetAll": lambda: message("GetAll", "s", INTERFACE, interface=PROPERTIES),
    "Introspect": lambda: message("Introspect", interface=INTROSPECTABLE),
}


@pytest.fixture
def permissive(host: Host) -> Iterator[Host]:
    """A host whose bus lets everything through."""
    with private_bus(PERMISSIVE_POLICY) as address:
        host.bus = address
        yield host
        host.stack.close()


def answers(address: str, calls: dict[str, Callable[[], Message]], times: int = 1) -> set[str]:
    """Error names, or '' for success, of the answers to all these calls at once."""
    with Client(address) as client:
        messages = [make() for _ in range(times) for make in calls.values()]
        replies = client.call_all(*messages)
    return {r.error_name if r.message_type == MessageType.ERROR else "" for r in replies}


def settled(client: Client) -> dict[str, Any]:
    """The properties that change by somebody's call only; looks for live connections go on."""
    properties = client.call("GetAll", "s", INTERFACE, interface=PROPERTIES)
    return {name: value for name, value in properties.items() if name != "LiveConnections"}


@pytest.mark.parametrize("policy", ["shipped", "permissive"])
def test_changes_are_refused(host: Host, policy: str, request: pytest.FixtureRequest) -> None:
    if policy == "permissive":
        request.getfixturevalue("permissive")
    host.start()
    with Client(host.bus) as client:
        client.call("Enable")
        before = settled(client)
        assert as_nobody(answers, host.bus, FOR_ROOT) == {REFUSED_BY_US}
        assert as_nobody(answers, host.bus, FOR_ALL) == {""}
        assert settled(client) == before


def test_the_policy_lets_nothing_else_through(host: Host, client: Client) -> None:
    """Nor does it let through what dbus-next would answer by itself."""
    others = {
        "Set": lambda: message(
            *("Set", "ssv", INTERFACE, "State", Variant("s", "enabled")), interface=PROPERTIES
        ),
        "GetManagedObjects": lambda: message(
            "GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager"
        ),
        "no interface": lambda: message("Enable", interface="org.sockredir.Manager2"),
    }
    assert as_nobody(answers, host.bus, others) == {REFUSED_BY_BUS}


def refused_name(address: str) -> str:
    with Client(address) as client, pytest.raises(DBusError) as caught:
        client.ask_bus("RequestName", "su", NAME, 0)
    return str(caught.value.type)


def test_the_policy_keeps_the_name_for_root(host: Host) -> None:
    assert as_nobody(refused_name, host.bus) == REFUSED_BY_BUS


def repeated_answers(address: str, number: int) -> set[str]:
    found: set[str] = set()
    for _ in range(number):
        found |= answers(address, FOR_ROOT)
    return found


def test_callers_are_not_mixed_up(permissive: Host) -> None:
    """Calls of root and of user nobody that arrive together each get their own answer."""
    permissive.start()
    unprivileged = permissive.actor()
    unprivileged.begin(answers_as_nobody, permissive.bus)
    mixed = {name: FOR_ROOT[name] for name in ("Subscribe", "Enable")} | FOR_ALL
    for _ in range(TRIES // 5):
        assert answers(permissive.bus, mixed, times=5) == {""}
    assert unprivileged.finish() == {REFUSED_BY_US}


def answers_as_nobody(address: str) -> set[str]:
    found: set[str] = as_nobody(repeated_answers, address, TRIES)
    return found


@pytest.mark.parametrize("command", ["enable", "disable", "trace"])
def test_client_says_denied(host: Host, client: Client, command: str) -> None:
    status, stderr = main_as_nobody(
        sockredirctl.__main__.main, command, DBUS_SYSTEM_BUS_ADDRESS=host.bus
    )
    assert status == 4
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("sockredirctl: not allowed")


@pytest.mark.parametrize("command", ["status", "stats"])
def test_client_shows_everybody(host: Host, client: Client, command: str) -> None:
    status, stderr = main_as_nobody(
        sockredirctl.__main__.main, command, "--json", DBUS_SYSTEM_BUS_ADDRESS=host.bus
    )
    assert (status, stderr) == (0, "")
