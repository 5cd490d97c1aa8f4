"""The end of docs/first-day.md: what the reboot left of the day before."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import transcript
from shell import sh
from status import accelerated_now, soon
from transcript import typed

pytestmark = pytest.mark.userland
CONNECTIONS = 4  # of app.service, see typed/test_first_day.py


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """The tests after this one count all connections of the host."""
    yield
    sh("systemctl disable --now app redis-server")


def test_after_the_reboot() -> None:
    transcript.chapter(
        "After the reboot",
        "Acceleration is restored before the services start, if that takes less than 15 s; "
        "otherwise their connections are joined after it.",
    )
    sh("while [ $(systemctl is-active sockredird) = activating ]; do sleep 1; done")
    assert "State: enabled" in typed("sockredirctl status")
    soon(lambda: accelerated_now() == CONNECTIONS, "the app's connections are accelerated")
    said = typed("sockredirctl list --unit app")
    assert len(re.findall(r"redis.*(accelerated|joined)", said)) == CONNECTIONS
