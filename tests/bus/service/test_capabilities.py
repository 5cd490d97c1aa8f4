"""The capabilities of the unit suffice, and none of them can be left out."""

from __future__ import annotations

import os
import re

import pytest
from dbus_next import DBusError

from sockredird.kernel.capabilities import NEEDED
from support.checkout import REPOSITORY
from support.daemon import load, pins
from support.daemon.host import Host

UNIT = REPOSITORY / "systemd" / "sockredird.service"


def bounding_set() -> list[str]:
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    return line.split()


def limited_to(capabilities: list[str]) -> list[str]:
    """A command that runs another as root with these capabilities, as systemd does."""
    names = [f"+{name.removeprefix('CAP_').lower()}" for name in capabilities]
    kept = ",".join(["-all", *names])
    return ["setpriv", "--inh-caps=-all", f"--bounding-set={kept}", "--no-new-privs"]


def test_those_of_the_unit_suffice(host: Host) -> None:
    """For everything but what reads other users' files; see also the tests in a VM."""
    assert set(bounding_set()) == set(NEEDED)
    kept = host.directory / "cache"
    daemon = host.start(limited_to(bounding_set()), CACHE_DIRECTORY=str(kept))
    client = host.client()
    client.call("Enable")
    assert list(kept.iterdir())  # it has been compiled
    client.call("Disable")
    client.call("Enable")  # and is loaded again
    actor = host.actor()
    actor.do(load.start, 2)
    actor.do(load.advance, 10)
    assert len(client.call("Connections", "u", 0)) == 2
    assert host.ctl("explain", "--pid", str(actor.pid)).returncode == 0
    assert daemon.stop() == 0
    host.start(limited_to(bounding_set()))
    actor.do(load.advance, 10)
    assert client.call("Stats")["active_connections"] == 2
    client.call("Disable")
    assert client.get("State") == "disabled"
    actor.do(load.finish)


@pytest.mark.parametrize("missing", bounding_set())
def test_enable_without(host: Host, missing: str) -> None:
    others = limited_to([name for name in bounding_set() if name != missing])
    host.start(others, CACHE_DIRECTORY=str(host.directory / "cache"))
    client = host.client()
    with pytest.raises(DBusError) as caught:
        client.call("Enable")
    assert caught.value.type == "org.sockredir.Error.LoadFailed"
    assert f"lacks {missing}: see CapabilityBoundingSet=" in caught.value.text
    assert client.get("State") == "disabled"
    assert pins.directories(host.root) == []


def test_adopt_without_any(host: Host) -> None:
    """What is pinned is neither reported as somebody else's nor touched."""
    daemon = host.start()
    host.client().call("Enable")
    objects = pins.ids(host.root)
    daemon.stop()
    daemon = host.launch(under=limited_to([]))
    assert daemon.wait() == os.EX_NOPERM
    assert all(name in daemon.stderr for name in NEEDED)
    assert "remove" not in daemon.stderr
    assert pins.ids(host.root) == objects
