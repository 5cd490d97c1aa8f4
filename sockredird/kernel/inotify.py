"""Notices of files that appear and disappear, by inotify(7), which bpffs and cgroupfs support."""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from pathlib import Path

IN_MOVED_FROM = 0x00000040
IN_MOVED_TO = 0x00000080
IN_CREATE = 0x00000100
IN_DELETE = 0x00000200
IN_DELETE_SELF = 0x00000400
IN_MOVE_SELF = 0x00000800
GOING = IN_MOVED_FROM | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF
COMING = IN_CREATE | IN_MOVED_TO

_libc = ctypes.CDLL(None, use_errno=True)


_EVENT = struct.Struct("iIII")  # struct inotify_event; the name follows


class Watch:
    """A descriptor that is readable when one of the paths, or a file in it, came or went.

    cgroupfs reports the removal of a cgroup only to a watch of the directory above it.
    """

    def __init__(self, paths: list[Path], events: int = GOING) -> None:
        """Raises OSError, for one if a path does not exist."""
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")
        try:
            for path in paths:
                added = _libc.inotify_add_watch(self._fd, os.fsencode(path), events)
                _checked(added, f"watch {path}")
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        return self._fd

    def names(self) -> set[str]:
        """Names of the files that came or went; the empty name stands for a path itself."""
        found = set()
        with suppress(BlockingIOError):
            while data := os.read(self._fd, 65536):
                while data:
                    *_, length = _EVENT.unpack_from(data)
                    end = _EVENT.size + length
                    found.add(os.fsdecode(data[_EVENT.size : end].rstrip(b"\0")))
                    data = data[end:]
        return found

    def close(self) -> None:
        os.close(self._fd)


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result
