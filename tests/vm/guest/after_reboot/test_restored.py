"""The second boot; nothing is set up by hand."""

from __future__ import annotations

import json
from pathlib import Path

from lockdown import lockdown
from pair import MESSAGES, Pair
from shell import sh
from status import loaded, state


def test_this_is_another_boot() -> None:
    now = Path("/proc/sys/kernel/random/boot_id").read_text()
    assert now != Path("/var/lib/first-boot-id").read_text()


def test_enabled_state_is_restored() -> None:
    sh("while [ $(systemctl is-active sockredird) = activating ]; do sleep 1; done")
    assert state() == "enabled"
    with Pair() as pair:
        pair.send()
        port = pair.client.getpeername()[1]
        (found,) = json.loads(sh(f"sockredirctl list --port {port} --json"))  # others talk as well
    assert found["client_sent_messages"] == MESSAGES


def test_restored_before_the_services() -> None:
    """What the first boot compiled is kept, so the second need not wait for the daemon."""
    assert "restored: state=enabled" in sh("journalctl -b -u sockredird-restore --no-pager")
    done = int(sh("systemctl show -P ExecMainExitTimestampMonotonic sockredird-restore"))
    basic = int(sh("systemctl show -P ActiveEnterTimestampMonotonic basic.target"))
    assert 0 < done < basic


def test_works_under_lockdown_integrity() -> None:
    """What Secure Boot switches on; none of the tests of this boot run without it."""
    assert "[integrity]" in lockdown()


def test_disable() -> None:
    sh("sockredirctl disable")
    assert state() == "disabled"
    assert not loaded()
