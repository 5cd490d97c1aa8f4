"""The second boot; nothing is set up by hand."""

from __future__ import annotations

from pathlib import Path

from pair import MESSAGES, Pair
from shell import sh
from status import counted, state


def test_this_is_another_boot() -> None:
    now = Path("/proc/sys/kernel/random/boot_id").read_text()
    assert now != Path("/var/lib/first-boot-id").read_text()


def test_enabled_state_is_restored() -> None:
    sh("systemctl is-active sockredird")
    assert state() == "enabled"
    with counted() as change, Pair() as pair:
        pair.send()
    assert (change.connections, change.messages) == (1, MESSAGES)


def test_disable() -> None:
    sh("sockredirctl disable")
    assert state() == "disabled"
    assert not sh("bpftool prog show | grep 'name sockredir' || true")
