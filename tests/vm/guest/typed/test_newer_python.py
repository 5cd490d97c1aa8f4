"""A Python that Debian's testing has beside the default one, before it becomes that."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair import MESSAGES, Pair
from shell import sh
from status import counted, state

from conftest import CHECKOUT, is_true

NEWER = [python for python in ("python3.15", "python3.16") if shutil.which(python)]
MISSING_NAMES = CHECKOUT / "tests" / "unit" / "bus" / "missing_names.py"
DROP_IN = Path("/run/systemd/system/sockredird.service.d/newer-python.conf")

pytestmark = [pytest.mark.userland, pytest.mark.parametrize("python", NEWER)]


@pytest.fixture
def restarted_later(installed: None) -> Iterator[None]:
    yield
    DROP_IN.unlink(missing_ok=True)
    sh("systemctl daemon-reload; systemctl restart sockredird")


def test_client_calls_the_daemon(running: None, python: str) -> None:
    assert "State: " in sh(f"{python} /usr/bin/sockredirctl status")


def test_object_on_the_bus_is_called(installed: None, python: str) -> None:
    """Needs no module that Debian compiles for its default Python only, as the daemon does."""
    sh(f"PYTHONPATH={CHECKOUT}/tests {python} {MISSING_NAMES} sockredird.bus.manager1")


def test_daemon_accelerates(restarted_later: None, python: str) -> None:
    if not is_true(f"{python} -c 'import pydantic'"):
        pytest.skip(f"this release has pydantic-core for its default Python, not for {python}")
    DROP_IN.parent.mkdir(exist_ok=True)
    start = f"/usr/bin/{python} /usr/bin/sockredird"
    DROP_IN.write_text(f"[Service]\nExecStart=\nExecStart={start}\n")
    sh("systemctl daemon-reload; systemctl restart sockredird; sockredirctl enable")
    assert python in sh("ps -o args= $(systemctl show -P MainPID sockredird)")
    assert state() == "enabled"
    with Pair() as pair, counted() as change:
        pair.send()
    assert change.messages == MESSAGES
