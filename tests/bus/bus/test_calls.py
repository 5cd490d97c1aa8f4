"""Calls at the same time, with a scope of their own, and with a wrong one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from dbus_next import DBusError, MessageType, Variant

from support.background import Background
from support.daemon import load, pins
from support.daemon.client import Client, message
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.pins import detach
from support.traffic import free_port
from support.waiting import eventually

CALLERS = (
    ("Enable", "Stats", "Disable", "Stats", "Enable"),
    ("Stats", "Disable", "Enable", "Enable", "Stats"),
    ("Disable", "Stats", "Disable", "Stats", "Stats"),
    ("Enable", "Enable", "Stats", "Disable", "Stats"),
)


def call_all(address: str, members: tuple[str, ...]) -> list[MessageType]:
    """In a thread: all calls of one caller at once."""
    with Client(address) as client:
        return [reply.message_type for reply in client.call_all(*map(message, members))]


def test_twenty_at_once(host: Host, client: Client) -> None:
    callers = [Background(call_all, host.bus, members) for members in CALLERS]
    for caller in callers:
        assert caller.join(60) == [MessageType.METHOD_RETURN] * 5
    # the last one decides, whichever it was
    state = client.get("State")
    assert state in ("enabled", "disabled")
    assert (host.state / "enabled.json").exists() == (state == "enabled")
    assert len(pins.directories(host.root)) == (state == "enabled")
    before = client.call("Stats")["redirected_messages"]
    host.actor().do(load.echo_once, 10, 64)
    redirected = client.call("Stats")["redirected_messages"] - before
    assert redirected == (20 if state == "enabled" else 0)


def test_stats_while_enabling(client: Client) -> None:
    replies = client.call_all(*map(message, ["Enable", *["Stats"] * 10, "Disable"]))
    assert {reply.message_type for reply in replies} == {MessageType.METHOD_RETURN}
    assert client.get("State") == "disabled"


def test_only_ports(host: Host, client: Client) -> None:
    port = free_port()
    client.call("EnableWith", "a{sv}", {"only_ports": Variant("au", [port])})
    assert client.get("Scope")["only_ports"] == [port]
    program = host.actor()
    program.do(load.echo_once, 50, 64)
    assert client.call("Stats")["redirected_messages"] == 0
    program.do(load.echo_once, 50, 64, port)
    assert client.call("Stats")["redirected_messages"] == 100


def test_a_scope_holds_until_disable(host: Host, client: Client) -> None:
    client.call("EnableWith", "a{sv}", {"exclude_ports": Variant("au", [7])})
    client.call("Disable")
    assert client.get("Scope")["exclude_ports"] == [21, 23, 513, 514]
    client.call("Enable")
    assert client.get("Scope")["exclude_ports"] == [21, 23, 513, 514]


def test_a_scope_outlives_the_daemon(host: Host, daemon: DaemonProcess, client: Client) -> None:
    client.call("EnableWith", "a{sv}", {"only_ports": Variant("au", [7])})
    scope, ids = client.get("Scope"), pins.ids(host.root)
    daemon.kill()
    host.start()
    assert host.client().get("Scope") == scope
    assert pins.ids(host.root) == ids


def test_the_same_scope_again_changes_nothing(host: Host, client: Client) -> None:
    scope = {"only_ports": Variant("au", [7, 8])}
    client.call("EnableWith", "a{sv}", scope)
    before = pins.ids(host.root)
    client.call("EnableWith", "a{sv}", scope)
    assert pins.ids(host.root) == before


def test_another_scope_under_traffic(host: Host, enabled: Client) -> None:
    traffic = host.actor()
    traffic.do(load.start, 8)
    traffic.do(load.advance, 20)
    before = pins.ids(host.root)
    enabled.call("EnableWith", "a{sv}", {"exclude_ports": Variant("au", [7])})
    assert not pins.ids(host.root).programs & before.programs
    traffic.do(load.advance, 20)
    traffic.do(load.renew, 4)
    stats = enabled.call("Stats")
    at_handshake = stats["accelerated_connections"] - stats["joined_connections"]
    assert (at_handshake, stats["retired_disable"]) == (12, 8)
    traffic.do(load.finish)


WRONG_SCOPES: dict[str, dict[str, Any]] = {
    "unknown key": {"ports": Variant("au", [7])},
    "text for a list": {"only_ports": Variant("s", "7")},
    "texts for ports": {"only_ports": Variant("as", ["7"])},
    "port 0": {"only_ports": Variant("au", [0])},
    "port 65536": {"exclude_ports": Variant("au", [65536])},
    "booleans for ports": {"only_ports": Variant("ab", [True])},
    "number for a text": {"cgroup": Variant("u", 7)},
    "empty text": {"cgroup": Variant("s", "")},
    "structure": {"cgroup": Variant("(su)", ["/", 7])},
    "variants in a list": {"only_ports": Variant("av", [Variant("u", 7)])},
    "unknown word": {"addresses": Variant("s", "local")},
    "all excluded": {"exclude_cgroups": Variant("as", ["/"])},
    "relative cgroup": {"exclude_cgroups": Variant("as", ["system.slice"])},
    "cgroup above": {"exclude_cgroups": Variant("as", ["/system.slice/.."])},
    "deep cgroup": {"exclude_cgroups": Variant("as", ["/a" * 17])},
    "long name": {"exclude_cgroups": Variant("as", ["/" + "a" * 127])},
    "no such cgroup": {"cgroup": Variant("s", "/srt-none")},
    "parent of the root": {"cgroup": Variant("s", "/..")},
    "dunder": {"__pydantic_self__": Variant("u", 7)},
}


@contextmanager
def invalid_config() -> Iterator[None]:
    with pytest.raises(DBusError) as caught:
        yield
    assert caught.value.type == "org.sockredir.Error.InvalidConfig", caught.value.text
    text = caught.value.text
    assert text and "\n" not in text
    assert "Traceback" not in text and "Variant" not in text


@pytest.mark.parametrize("wrong", WRONG_SCOPES.values(), ids=WRONG_SCOPES)
def test_a_wrong_scope_is_refused(host: Host, client: Client, wrong: dict[str, Any]) -> None:
    scope = client.get("Scope")
    with invalid_config():
        client.call("EnableWith", "a{sv}", wrong)
    assert (client.get("State"), client.get("Scope")) == ("disabled", scope)
    assert pins.directories(host.root) == []
    assert not (host.state / "enabled.json").exists()


def test_a_wrong_scope_changes_nothing_in_force(host: Host, enabled: Client) -> None:
    scope, ids = enabled.get("Scope"), pins.ids(host.root)
    with invalid_config():
        enabled.call("EnableWith", "a{sv}", WRONG_SCOPES["no such cgroup"])
    assert (enabled.get("State"), enabled.get("Scope")) == ("enabled", scope)
    assert pins.ids(host.root) == ids


def test_a_stranger_on_the_bpffs_is_named(host: Host, client: Client) -> None:
    (host.root / "of-somebody-else").mkdir(parents=True)
    try:
        with pytest.raises(DBusError) as caught:
            client.call("Enable")
        assert caught.value.type == "org.sockredir.Error.LoadFailed"
        assert "of-somebody-else" in caught.value.text
        assert client.get("State") == "disabled"
    finally:
        (host.root / "of-somebody-else").rmdir()


def test_intent_that_cannot_be_kept(host: Host, daemon: DaemonProcess) -> None:
    """Either Enable succeeds, or it fails and nothing is accelerated."""
    host.state.write_text("a file where a directory is wanted")
    client = host.client()
    with pytest.raises(DBusError) as caught:
        client.call("Enable")
    assert "Traceback" not in caught.value.text
    assert str(host.state) in caught.value.text
    assert client.get("State") == "disabled"
    assert pins.directories(host.root) == []


def test_dead_links_are_replaced(host: Host, enabled: Client) -> None:
    """Somebody unlinked the pins that keep the programs attached."""
    detach(host.root / "generation-1")
    enabled.call("Enable")
    host.actor().do(load.echo_once, 10, 64)
    assert enabled.call("Stats")["redirected_messages"] == 20
    eventually(lambda: len(pins.directories(host.root)) == 1, "the dead generation is gone")


def test_the_intent_is_kept_in_a_readable_file(host: Host, enabled: Client) -> None:
    assert json.loads((host.state / "enabled.json").read_text())["enabled"] is True
