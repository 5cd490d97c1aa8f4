"""Compiled programs, kept for the next Enable: in $CACHE_DIRECTORY, or /var/cache/sockredird.

Nothing depends on it: what is missing, damaged or somebody else's is compiled anew.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from sockredird.kernel import files
from sockredird.loader.objects import Objects, Unreadable

log = logging.getLogger(__name__)

KEPT = 8  # of other limits, and of the version before, which an upgrade may have to go back to


def directory() -> Path:
    """Systemd's CacheDirectory=, systemd.exec(5)."""
    return Path(os.environ.get("CACHE_DIRECTORY") or "/var/cache/sockredird")


def _path(key: str) -> Path:
    """Of this processor architecture: a disk, or a container's volume, may meet another."""
    return directory() / f"{key}.{os.uname().machine}"


def read(key: str) -> Objects | None:
    path = _path(key)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a regular file")
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise Unreadable("others may have written it")
            objects = Objects.parse(file.read())
            os.utime(file.fileno())
    except FileNotFoundError:
        return None
    except (OSError, Unreadable) as error:
        log.warning("%s is not used: %s", path, error)
        return None
    return objects


def write(key: str, objects: Objects) -> None:
    """Or not, with a warning."""
    try:
        directory().mkdir(mode=0o755, parents=True, exist_ok=True)
        files.replace(_path(key), objects.dump(), 0o600, f".{os.getpid()}.new")
        by_age = sorted(directory().iterdir(), key=lambda path: -path.stat().st_mtime_ns)
        for path in by_age[KEPT:]:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the compiled programs are not kept: %s", error)
