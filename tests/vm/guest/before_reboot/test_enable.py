"""What the next boot has to restore."""

from __future__ import annotations

from pathlib import Path

from shell import sh
from status import state

DROP_IN = "/etc/systemd/system/sockredird-restore.service.d"


def test_enabled_before_the_reboot(enabled: None) -> None:
    assert state() == "enabled"
    Path("/var/lib/first-boot-id").write_text(Path("/proc/sys/kernel/random/boot_id").read_text())
    # the boot waits for this, but an emulated processor takes longer to load the programs
    sh(f"mkdir -p {DROP_IN}; printf '[Service]\\nTimeoutStartSec=180\\n' > {DROP_IN}/patience.conf")
