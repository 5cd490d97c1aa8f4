"""A cgroup in scope that does not exist is reported, awaited, and takes effect once made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dbus_next import DBusError, Message, Variant

from support import cgroups
from support.daemon import load
from support.daemon.client import Client, plain
from support.daemon.host import Host


@pytest.fixture
def missing() -> Iterator[Path]:
    """Two levels of cgroups that a test may make."""
    outer = cgroups.create()
    outer.rmdir()
    yield outer / "inner"
    for path in (outer / "inner", outer):
        if path.exists():
            cgroups.remove(path)


def await_problem(client: Client, word: str) -> None:
    """Until a signal tells of a Problem with the word, or of none; needs follow_state()."""

    def shows(signal: Message) -> bool:
        if signal.member != "PropertiesChanged":
            return False
        problem = plain(signal.body[1]).get("Problem")
        return problem is not None and (word in problem if word else not problem)

    client.await_signal(shows)


def named(path: Path) -> str:
    return f"/{path.parent.name}/{path.name}"


def test_nothing_enabled(host: Host, missing: Path) -> None:
    """The daemon stays up: an empty host may be configured before its services are there."""
    host.overrides["scope"] = {"cgroup": named(missing)}
    host.start()
    client = host.client()
    client.follow_state()
    assert client.get("State") == "disabled"
    assert named(missing) in client.get("Problem")
    assert named(missing) in host.ctl("status").stdout
    with pytest.raises(DBusError) as caught:
        client.call("Enable")
    assert caught.value.type == "org.sockredir.Error.InvalidConfig"
    missing.parent.mkdir()
    assert named(missing) in client.get("Problem")
    missing.mkdir()
    await_problem(client, "")
    client.call("Enable")
    assert client.get("State") == "enabled"
    client.call("Disable")


def test_removed_and_made_again(host: Host, client: Client, missing: Path) -> None:
    """As systemd does with the cgroup of a service that restarts."""
    missing.parent.mkdir()
    missing.mkdir()
    client.call("EnableWith", "a{sv}", {"cgroup": Variant("s", named(missing))})
    client.follow_state()
    for _ in range(2):
        client.signals.clear()
        missing.rmdir()
        await_problem(client, "removed")
        assert client.get("State") == "enabled"
        missing.mkdir()
        await_problem(client, "")
        before = client.call("Stats")["redirected_messages"]
        with host.actor(missing) as actor:
            actor.do(load.echo_once, 10, 64)
        assert client.call("Stats")["redirected_messages"] == before + 20
    client.call("Disable")


def test_made_again_at_once(host: Host, client: Client, missing: Path) -> None:
    missing.parent.mkdir()
    missing.mkdir()
    client.call("EnableWith", "a{sv}", {"cgroup": Variant("s", named(missing))})
    client.follow_state()
    missing.rmdir()
    missing.mkdir()
    await_problem(client, "removed")
    await_problem(client, "")
    with host.actor(missing) as actor:
        actor.do(load.echo_once, 10, 64)
    assert client.call("Stats")["redirected_messages"] == 20
    client.call("Disable")
