"""Compiled programs, kept in $CACHE_DIRECTORY or /var/cache/sockredird for the next Enable.

Nothing depends on it: programs whose file is missing, damaged or not ours are compiled again.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from sockredird.kernel import files
from sockredird.loader.objects import Objects, Unreadable

log = logging.getLogger(__name__)

KEPT = 8  # files; the last version's is among them, in case an upgrade is undone


def directory() -> Path:
    """Under systemd, the directory of CacheDirectory= (systemd.exec(5))."""
    return Path(os.environ.get("CACHE_DIRECTORY") or "/var/cache/sockredird")


def _path(key: str) -> Path:
    """The file for this processor architecture, since a volume may be moved to another one."""
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
                raise Unreadable("other users could have written it")
            objects = Objects.parse(file.read())
            os.utime(file.fileno())
    except FileNotFoundError:
        return None
    except (OSError, Unreadable) as error:
        log.warning("%s is not used: %s", path, error)
        return None
    return objects


def write(key: str, objects: Objects) -> None:
    """Keeps the programs. A failure is a warning, since they can be compiled again."""
    try:
        directory().mkdir(mode=0o755, parents=True, exist_ok=True)
        files.replace(_path(key), objects.dump(), 0o600, f".{os.getpid()}.new")
        by_age = sorted(directory().iterdir(), key=lambda path: -path.stat().st_mtime_ns)
        for path in by_age[KEPT:]:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the compiled programs are not kept: %s", error)
