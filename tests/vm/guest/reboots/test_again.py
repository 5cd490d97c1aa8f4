"""One of many boots: acceleration is restored, and every connection that can be is accelerated."""

from __future__ import annotations

from pathlib import Path

import database
import pytest
import services
from shell import sh
from status import called, property_of, soon, state

SEEN = Path("/var/lib/boot-ids")


def test_this_is_another_boot() -> None:
    now = Path("/proc/sys/kernel/random/boot_id").read_text()
    seen = SEEN.read_text() if SEEN.exists() else ""
    assert now not in seen
    SEEN.write_text(seen + now)


def test_acceleration_is_restored() -> None:
    sh("while [ $(systemctl is-active sockredird) = activating ]; do sleep 1; done")
    assert state() == "enabled"


@pytest.mark.parametrize("pair", services.PORTS)
def test_redis(pair: str) -> None:
    services.check_pair(pair)


def test_postgresql() -> None:
    database.check()


def test_nothing_is_left_on_tcp() -> None:
    """No connection carries messages and is kept from joining, and nothing was learned."""
    soon(lambda: not property_of("LiveConnections")["left"], "nothing is left on TCP")
    assert called("Learned") == []
