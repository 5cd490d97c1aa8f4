"""What the daemon has compiled: an emulated processor takes a minute, and not for every purge."""

from __future__ import annotations

import shutil
from pathlib import Path

CACHE, KEPT = Path("/var/cache/sockredird"), Path("/root/compiled")


def keep() -> None:
    if CACHE.exists():
        shutil.copytree(CACHE, KEPT, dirs_exist_ok=True)


def put_back() -> None:
    if KEPT.exists():
        shutil.copytree(KEPT, CACHE, dirs_exist_ok=True)
