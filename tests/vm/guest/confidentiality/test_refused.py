"""A kernel that keeps its memory even from BPF; acceleration was enabled when it booted."""

from __future__ import annotations

import pytest
from lockdown import lockdown
from pair import Pair
from shell import Failed, sh
from status import BUSCTL, loaded, state


def test_lockdown_is_confidentiality() -> None:
    assert "[confidentiality]" in lockdown()


def test_daemon_runs_and_says_why_it_does_not_accelerate() -> None:
    sh("systemctl is-active sockredird")
    assert state() == "failed"
    assert "locked down" in sh(BUSCTL.format("get-property", "Problem"))
    assert "locked down" in sh("systemctl status --no-pager sockredird")
    assert "locked down" in sh("sockredirctl status")


def test_enable_refuses_with_a_clear_error() -> None:
    with pytest.raises(
        Failed, match=r"locked down \(confidentiality\).*lockdown=integrity"
    ) as caught:
        sh("sockredirctl enable")
    assert len(caught.value.output.splitlines()) == 1
    with pytest.raises(Failed, match="locked down"):
        sh(BUSCTL.format("call", "Enable"))


def test_connections_are_plain_tcp() -> None:
    assert not loaded()
    with Pair() as pair:
        pair.send()
