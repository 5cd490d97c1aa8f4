"""busctl, as root and as somebody."""

from __future__ import annotations

import pytest
from shell import Failed, sh
from status import BUSCTL, state

VISITOR = "visitor"
DENIED = 4  # sockredirctl's exit status


def test_stats(enabled: None) -> None:
    answer = sh("busctl call org.sockredir /org/sockredir org.sockredir.Manager1 Stats")
    assert answer.startswith("a{sv} ")
    assert '"accelerated_connections" t ' in answer


def test_introspect(running: None) -> None:
    answer = sh("busctl introspect org.sockredir /org/sockredir")
    for member in (".Enable", ".EnableWith", ".Disable", ".Stats", ".State", ".Event"):
        assert f"\n{member} " in answer


def test_enable(disabled: None) -> None:
    sh("busctl call org.sockredir /org/sockredir org.sockredir.Manager1 Enable")
    assert state() == "enabled"
    sh("busctl call org.sockredir /org/sockredir org.sockredir.Manager1 Disable")
    assert state() == "disabled"


def test_bus_activation(installed: None) -> None:
    sh("systemctl stop sockredird")
    assert "disabled" in sh(BUSCTL.format("get-property", "State"), user=VISITOR)


def test_anybody_may_read(enabled: None) -> None:
    sh("busctl call org.sockredir /org/sockredir org.sockredir.Manager1 Stats", user=VISITOR)
    sh("sockredirctl stats", user=VISITOR)
    sh("sockredirctl status", user=VISITOR)


@pytest.mark.parametrize("member", ["Enable", "Disable", "Reload"])
def test_not_everybody_may_change(enabled: None, member: str) -> None:
    with pytest.raises(Failed, match=r"(?i)access denied|AccessDenied|not allowed"):
        sh(BUSCTL.format("call", member), user=VISITOR)
    assert state() == "enabled"


def test_client_says_denied(enabled: None) -> None:
    with pytest.raises(Failed) as caught:
        sh("sockredirctl disable", user=VISITOR)
    assert caught.value.status == DENIED
    assert state() == "enabled"
