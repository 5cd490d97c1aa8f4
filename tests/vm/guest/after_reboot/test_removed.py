"""The package is purged in a boot that restored what it had enabled: nothing is left of it."""

from __future__ import annotations

from pathlib import Path

import transcript
from shell import sh
from status import loaded, state
from transcript import typed


def test_removed(enabled: None) -> None:
    transcript.chapter("Remove it", "Connections go on as plain TCP, and nothing of it is left.")
    assert state() == "enabled"
    typed("apt-get purge -qq sockredird")
    assert not loaded()
    assert not list(Path("/sys/fs/bpf").glob("sockredird*"))
    assert typed("ls -d /etc/sockredir* /var/lib/sockredir* /run/sockredir*", status=2)
    assert not sh("systemctl list-unit-files --no-legend 'sockredird*' || true")
