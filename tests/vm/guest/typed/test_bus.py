"""busctl call and introspect, and the bus starting the daemon."""

from __future__ import annotations

import pytest
from shell import sh
from status import BUSCTL, state


def test_enable(disabled: None) -> None:
    sh(BUSCTL.format("call", "Enable"))
    assert state() == "enabled"
    sh(BUSCTL.format("call", "Disable"))
    assert state() == "disabled"


@pytest.mark.userland
def test_bus_activation(installed: None) -> None:
    sh("systemctl stop sockredird")
    assert "disabled" in sh(BUSCTL.format("get-property", "State"), user="visitor")


def test_stats(enabled: None) -> None:
    answer = sh("busctl call org.sockredir /org/sockredir org.sockredir.Manager1 Stats")
    assert answer.startswith("a{sv} ")
    assert '"accelerated_connections" t ' in answer


@pytest.mark.userland
def test_introspect(running: None) -> None:
    answer = sh("busctl introspect org.sockredir /org/sockredir")
    for member in (".Enable", ".EnableWith", ".Disable", ".Stats", ".State", ".Event"):
        assert f"\n{member} " in answer
