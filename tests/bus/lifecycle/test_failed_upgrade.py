"""A build whose datapath does not load leaves that of the build before in force, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from dbus_next import DBusError

from bus.lifecycle import trickle
from bus.lifecycle.builds import other_build, run_from
from support.checkout import REPOSITORY
from support.daemon import pins
from support.daemon.host import Host


def test_does_not_compile(host: Host, tmp_path: Path) -> None:
    traffic = host.actor()
    daemon = host.start()
    client = host.client()
    client.call("Enable")
    traffic.do(trickle.start, 2)
    objects = pins.ids(host.root)
    daemon.stop()

    daemon = host.start(**run_from(other_build(tmp_path, "#error injected")))
    assert client.get("State") == "enabled"
    assert pins.ids(host.root) == objects
    traffic.do(trickle.renew)
    assert client.call("Stats")["accelerated_connections"] == 3
    # reading does not make it go away
    for word in ("still that of version", "injected", "sockredirctl enable"):
        assert word in client.get("Problem")
        assert word in " ".join(host.ctl("status").stdout.split())
    with pytest.raises(DBusError, match="injected"):
        client.call("Enable")
    assert pins.ids(host.root) == objects
    traffic.do(trickle.renew)
    daemon.stop()

    host.start(**run_from(REPOSITORY))
    assert client.get("Problem") == ""
    assert pins.ids(host.root) == objects
    traffic.do(trickle.finish)
