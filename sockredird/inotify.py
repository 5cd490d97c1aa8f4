"""Being told when a file or directory goes away: inotify(7), which bpffs and cgroupfs support."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

IN_MOVED_FROM = 0x00000040
IN_DELETE = 0x00000200
IN_DELETE_SELF = 0x00000400
IN_MOVE_SELF = 0x00000800
_GOING = IN_MOVED_FROM | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Readable when one of the paths, or something directly in it, was removed or renamed."""

    def __init__(self, paths: list[Path]) -> None:
        """Raises OSError, also if one of the paths is gone already."""
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")
        try:
            for path in paths:
                added = _libc.inotify_add_watch(self._fd, os.fsencode(path), _GOING)
                _checked(added, f"watch {path}")
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._fd, 65536):
                pass

    def close(self) -> None:
        os.close(self._fd)


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result
