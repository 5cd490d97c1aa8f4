"""The bus object: its members and their signatures, its properties and their signals."""

from __future__ import annotations

import time
from xml.etree import ElementTree

import pytest
from dbus_next import DBusError, MessageType, Variant

import sockredird
from support.daemon.client import INTERFACE, NAME, PATH, PROPERTIES, Client, message, plain
from support.daemon.host import Host
from support.daemon.process import DaemonProcess

# INTERFACE.md: member -> (arguments, results)
METHODS = {
    "Enable": ("", ""),
    "EnableWith": ("a{sv}", ""),
    "Disable": ("", ""),
    "DisableWith": ("a{sv}", ""),
    "Stats": ("", "a{sv}"),
    "Connections": ("u", "aa{sv}"),
    "ConnectionsWith": ("ua{sv}", "aa{sv}"),
    "WriteConnections": ("ha{sv}", ""),
    "Explain": ("a{sv}", "aa{sv}"),
    "Check": ("", "aa{sv}"),
    "Bench": ("q", "aa{sv}"),
    "BenchWith": ("a{sv}", "a{sv}"),
    "Learned": ("", "aa{sv}"),
    "Forget": ("s", ""),
    "Reload": ("", ""),
    "Subscribe": ("", ""),
    "Unsubscribe": ("", ""),
}
PROPERTY_TYPES = {
    "Version": "s",
    "State": "s",
    "Since": "t",
    "Scope": "a{sv}",
    "Units": "a{ss}",
    "Problem": "s",
    "Sources": "a{ss}",
    "Kernel": "a{sv}",
    "LiveConnections": "a{sv}",
}
SCOPE_TYPES = {
    "cgroup": "s",
    "units": "as",
    "addresses": "s",
    "exclude_ports": "au",
    "only_ports": "au",
    "exclude_cgroups": "as",
    "blocking_readers": "s",
    "exclude_units": "as",
}


def introspect(client: Client) -> ElementTree.Element:
    xml = client.call("Introspect", interface="org.freedesktop.DBus.Introspectable")
    (interface,) = ElementTree.fromstring(xml).findall(f"interface[@name='{INTERFACE}']")
    return interface


def test_methods_and_signatures(client: Client) -> None:
    found = {
        method.get("name"): tuple(
            "".join(str(arg.get("type")) for arg in method.iterfind(f"arg[@direction='{way}']"))
            for way in ("in", "out")
        )
        for method in introspect(client).iterfind("method")
    }
    assert found == METHODS


def test_properties_and_signal_are_introspectable(client: Client) -> None:
    interface = introspect(client)
    assert {p.get("name"): p.get("type") for p in interface.iterfind("property")} == PROPERTY_TYPES
    assert {p.get("access") for p in interface.iterfind("property")} == {"read"}
    (event,) = interface.findall("signal")
    assert event.get("name") == "Event"
    assert [arg.get("type") for arg in event.iterfind("arg")] == ["a{sv}"]


def test_properties_of_a_disabled_daemon(host: Host, client: Client) -> None:
    values = client.raw("GetAll", "s", INTERFACE, interface=PROPERTIES)
    assert {name: value.signature for name, value in values.items()} == PROPERTY_TYPES
    scope = values["Scope"].value
    assert {name: value.signature for name, value in scope.items()} == SCOPE_TYPES
    assert plain(scope) == {
        "cgroup": host.scope,
        "units": [],
        "addresses": "loopback",
        "exclude_ports": [21, 23, 513, 514],
        "only_ports": [],
        "exclude_cgroups": [],
        "exclude_units": [],
        "blocking_readers": "accelerate",
    }
    assert values["Version"].value == sockredird.__version__
    assert values["State"].value == "disabled"
    age = time.time() - values["Since"].value / 1e6
    assert 0 <= age < 600


def test_each_change_of_state_is_signalled_once(client: Client) -> None:
    client.follow_state()
    for member, state in (
        ("Enable", "enabled"),
        ("Enable", None),
        ("Disable", "disabled"),
        ("Disable", None),
    ):
        client.signals.clear()
        before = client.get("Since")
        client.call(member)
        # the bus keeps the order of one sender: its signal comes before this reply
        now = {name: client.get(name) for name in ("State", "Since")}
        if state is None:
            assert client.signals == []
            assert now["Since"] == before
            continue
        (changed,) = client.signals
        interface, values, invalidated = changed.body
        assert (interface, invalidated) == (INTERFACE, [])
        assert plain(values) == {"State": now["State"], "Since": now["Since"]}
        assert now["State"] == state
        assert now["Since"] > before


def test_the_object_answers_as_soon_as_the_name_has_an_owner(host: Host) -> None:
    client = host.client()
    client.match(f"type='signal',member='NameOwnerChanged',arg0='{NAME}'")
    host.launch()
    client.await_signal(lambda signal: signal.member == "NameOwnerChanged" and signal.body[2])
    replies = client.call_all(
        message("Introspect", interface="org.freedesktop.DBus.Introspectable"),
        message("Get", "ss", INTERFACE, "State", interface=PROPERTIES),
        message("Stats"),
    )
    assert [reply.message_type for reply in replies] == [MessageType.METHOD_RETURN] * 3


def test_the_name_goes_with_the_daemon(host: Host, daemon: DaemonProcess) -> None:
    client = host.client()
    daemon.stop()
    assert client.ask_bus("NameHasOwner", "s", NAME) is False


@pytest.mark.parametrize(
    ("member", "signature", "body", "where"),
    [
        ("Set", "ssv", ["State"], {"interface": PROPERTIES}),
        ("Get", "ss", [INTERFACE, "Nothing"], {"interface": PROPERTIES}),
        ("Get", "ss", ["org.sockredir.Nothing", "State"], {"interface": PROPERTIES}),
        ("GetAll", "s", ["org.sockredir.Nothing"], {"interface": PROPERTIES}),
        ("Get", "s", [INTERFACE], {"interface": PROPERTIES}),
        ("Enable", "s", ["now"], {}),
        ("EnableWith", "as", [["cgroup"]], {}),
        ("Nothing", "", [], {}),
        ("Stats", "", [], {"path": f"{PATH}/nothing"}),
        ("Stats", "", [], {"interface": "org.sockredir.Manager2"}),
    ],
)
def test_a_wrong_call_is_answered_without_a_traceback(
    client: Client, member: str, signature: str, body: list[object], where: dict[str, str]
) -> None:
    if member == "Set":
        body = [INTERFACE, "State", Variant("s", "enabled")]
    with pytest.raises(DBusError) as caught:
        client.call(member, signature, *body, **where)
    assert caught.value.type.startswith("org.freedesktop.DBus.Error.")
    assert "Traceback" not in caught.value.text
    assert "File " not in caught.value.text
    assert client.get("State") == "disabled"
