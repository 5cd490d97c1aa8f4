"""`sockredird --disable` and `--restore`: one change without a bus and without a daemon."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from sockredird import config
from sockredird.config import Config
from sockredird.control.manager import DRAINING, FAILED, Manager
from sockredird.control.state import Intent
from sockredird.datapath import inventory
from sockredird.errors import LoadFailed, UnsupportedKernel
from sockredird.loader import compiler

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
                "draining: some programs have not read their data yet, and their connections stay "
                "on %s until they do; start sockredird, which removes it then",
                manager.draining[0].directory,
            )
    finally:
        inventory.unlock(lock, root)


def restore(settings: Config) -> None:
    """Early in the boot: pins the datapath again if it is to be enabled, for a daemon to adopt.

    Leaves to the daemon what takes a compiler, or systemd on the bus. Raises AlreadyRunning while a
    daemon runs, LoadFailed or UnsupportedKernel if acceleration cannot be restored.
    """
    root = Path(settings.paths.bpffs)
    overrides = Intent(Path(settings.paths.state) / "enabled.json").remembered()
    if overrides is None:
        return
    scope = config.override_scope(settings.scope, overrides)
    if scope.units or scope.exclude_units:
        log.info("left to sockredird.service, which can ask systemd where the units are")
        return
    if not compiler.is_cached():
        log.info("left to sockredird.service, as the programs have to be compiled for this kernel")
        return
    inventory.check_bpffs(root)
    lock = inventory.lock(root)
    try:
        manager = Manager(settings, changed=lambda: None)
        manager.start()
        if manager.state == FAILED:
            raise LoadFailed(manager.problem)
        log.info("restored: state=%s", manager.state)
    finally:
        inventory.unlock(lock, root)
