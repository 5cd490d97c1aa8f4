"""Off means off: with the unit disabled nothing that reads starts the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Failed, sh
from status import BUSCTL, loaded, state

pytestmark = pytest.mark.userland
NOT_RUNNING = 3  # sockredirctl's exit status


@pytest.fixture
def unit_disabled(enabled: None) -> Iterator[None]:
    """Acceleration is left on, as by somebody who believes that this ends it."""
    sh("systemctl disable --now sockredird")
    yield
    sh("systemctl enable --now sockredird")


def test_nothing_starts_it(unit_disabled: None) -> None:
    assert sh("systemctl is-enabled sockredird-restore || true") == "disabled\n"
    with pytest.raises(Failed) as caught:
        sh("sockredirctl status", user="visitor")
    assert caught.value.status == NOT_RUNNING
    # nor does a call that may start a service
    with pytest.raises(Failed):
        sh(BUSCTL.format("get-property", "State"), user="visitor")
    assert sh("systemctl is-active sockredird || true") == "inactive\n"


def test_root_is_told_what_is_left(unit_disabled: None) -> None:
    with pytest.raises(Failed) as caught:
        sh("sockredirctl status")
    assert "acceleration is on without it" in caught.value.output
    assert "acceleration stays on" in sh("journalctl -u sockredird --no-pager | tail -n 5")
    sh("sockredirctl disable")
    assert not list(Path("/sys/fs/bpf").glob("sockredird/generation-*"))
    assert not loaded()


def test_and_it_stays_off(unit_disabled: None) -> None:
    sh("sockredirctl disable")
    sh("systemctl start sockredird")
    assert state() == "disabled"
