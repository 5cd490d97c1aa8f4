"""The server of slow_file.py: apart from it, as not every Debian has fusepy."""

from __future__ import annotations

import errno
import os
import stat
import threading
from multiprocessing.connection import Connection as Channel
from multiprocessing.reduction import send_handle

from fusepy import FUSE, FuseOSError, Operations

NAME = "file"


class _Slow(Operations):
    """One file; nothing of it is read before the test says so."""

    use_ns = True  # of times; fusepy warns where it is not set

    def __init__(self, channel: Channel, size: int, tester: int, mounted_on: str) -> None:
        self._channel = channel
        self._size = size
        self._tester = tester
        self._mounted_on = mounted_on
        self._delivered = False

    def init(self, path: str) -> None:
        # the file can be opened once init() has returned
        threading.Thread(target=self._hand_over, daemon=True).start()

    def _hand_over(self) -> None:
        fd = os.open(f"{self._mounted_on}/{NAME}", os.O_RDONLY)
        send_handle(self._channel, fd, self._tester)
        # close() waits for the server: were it killed before, both would stay for ever
        os.close(fd)
        self._channel.send(None)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path == f"/{NAME}":
            return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": self._size}
        raise FuseOSError(errno.ENOENT)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if not self._delivered:
            self._channel.send(None)
            self._channel.recv()
            self._delivered = True
        return bytes(max(0, min(size, self._size - offset)))


def run(channel: Channel, size: int, tester: int, mounted_on: str) -> None:
    """Returns once it is mounted no more."""
    FUSE(_Slow(channel, size, tester, mounted_on), mounted_on, foreground=True, nothreads=True)
