"""Small JSON files that survive a crash at any point.

The new content is written to a file beside the old one, synced, and renamed over it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SIZE_LIMIT = 16 << 20  # bytes; the largest there is, learned.json, has a tenth of it
# Errors that pass: what could not be read may be undamaged.
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN)


def read(path: Path) -> dict[str, Any]:
    """The object in `path`; empty if there is no such file, or (with a warning) it is damaged.

    Raises OSError if it cannot be read: its content is unknown then, rather than missing.
    """
    try:
        # O_NONBLOCK: opening a FIFO in its place must not wait for a writer
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    with os.fdopen(fd, "rb") as file:
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("not a regular file")
            content = file.read(SIZE_LIMIT + 1)
            if len(content) > SIZE_LIMIT:
                raise ValueError(f"longer than {SIZE_LIMIT} bytes")
            data = json.loads(content)
            if not isinstance(data, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:
            log.warning("%s is ignored: %s", path, error)
            return {}
    return data


def read_or_empty(path: Path) -> dict[str, Any]:
    """As read(), but also empty, with a warning, if the file cannot be read.

    Raises OSError where that will pass, as for want of descriptors: what was not read would be
    overwritten.
    """
    try:
        return read(path)
    except OSError as error:
        if error.errno in PASSING:
            raise
        log.warning("%s is ignored: %s", path, error)
        return {}


def write(path: Path, data: dict[str, Any]) -> None:
    """Writes `data` as JSON. Raises OSError; the old content is still there then."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    replace(path, json.dumps(data).encode())


def replace(path: Path, content: bytes, mode: int = 0o644, suffix: str = ".new") -> None:
    """Puts a new file in place of `path`, whatever that is, and through no symbolic link.

    `suffix` is that of the file while it is written: where several processes write, one of each.
    Raises OSError; the old file is still there then.
    """
    beside = path.with_name(path.name + suffix)
    with suppress(FileNotFoundError):
        beside.unlink()  # of a crash, or somebody's symbolic link
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(beside, flags, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
