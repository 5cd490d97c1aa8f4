"""What the next boot has to restore."""

from __future__ import annotations

from pathlib import Path

from status import state


def test_enabled_before_the_reboot(enabled: None) -> None:
    assert state() == "enabled"
    Path("/var/lib/first-boot-id").write_text(Path("/proc/sys/kernel/random/boot_id").read_text())
