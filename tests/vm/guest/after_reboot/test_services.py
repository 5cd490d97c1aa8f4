"""Services that started with the host are accelerated, whichever came first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shell import sh
from status import called, soon

pytestmark = pytest.mark.userland
UNITS = [f"{name}-{part}" for name in ("early", "late") for part in ("redis", "client")]
CONNECTIONS = 4  # of each client, see before_reboot/test_services.py


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """The tests after this one count all connections of the host."""
    yield
    sh(f"systemctl disable --now {' '.join(UNITS)}")


def monotonic(unit: str, what: str) -> int:
    """Microseconds since the boot."""
    return int(sh(f"systemctl show -P {what}Monotonic {unit}"))


def redirecting(port: int) -> list[bool]:
    """Of each connection to the port that redirects in both directions, whether it was joined."""
    return [
        found["joined"]
        for found in called("Connections u 0")
        if found["server"].endswith(f":{port}")
        and found.get("client_sent_messages")
        and found.get("server_sent_messages")
    ]


@pytest.mark.parametrize(("pair", "port"), [("early", 6390), ("late", 6391)])
def test_whichever_started_first(pair: str, port: int) -> None:
    restored = monotonic("sockredird-restore", "ExecMainExitTimestamp")
    started = monotonic(f"{pair}-client", "ExecMainStartTimestamp")
    assert (started < restored) == (pair == "early")
    soon(lambda: len(redirecting(port)) == CONNECTIONS, f"those of {pair}-client are accelerated")
    if pair == "early":
        assert all(redirecting(port))
    assert sh(f"systemctl is-active {pair}-client") == "active\n"
