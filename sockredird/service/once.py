"""What `sockredird --disable` does: one change without a bus and without a daemon, then an end."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from sockredird.config import Config
from sockredird.control.manager import DRAINING, Manager
from sockredird.control.state import Intent
from sockredird.datapath import inventory
from sockredird.errors import UnsupportedKernel

log = logging.getLogger(__name__)


def disable(settings: Config) -> None:
    """Ends acceleration, and forgets that it was enabled; waits for readers as Disable() does.

    Raises AlreadyRunning while a daemon runs, LoadFailed if a pin is not sockredird's.
    """
    root = Path(settings.paths.bpffs)
    try:
        inventory.check_bpffs(root)
    except UnsupportedKernel:  # nothing can be pinned there
        Intent(Path(settings.paths.state) / "enabled.json").remember(None)
        return
    lock = inventory.lock(root)
    try:
        manager = Manager(settings, changed=lambda: None)
        manager.start(restore=False)
        deadline = time.monotonic() + settings.limits.drain_timeout_s
        while manager.state == DRAINING and time.monotonic() < deadline:
            manager.drain()
        if manager.state == DRAINING:
            log.warning(
                "draining: some programs have not read their data yet; their connections stay on "
                "%s until they do: start sockredird to take it away then",
                manager.draining[0].directory,
            )
    finally:
        inventory.unlock(lock, root)
