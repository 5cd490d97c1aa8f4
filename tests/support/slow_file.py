"""A mapped file that is slow to come, as from NFS: on FUSE, with a server that waits."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
import threading
from multiprocessing.connection import Connection as Channel
from multiprocessing.reduction import recv_handle, send_handle

from fusepy import FUSE, FuseOSError, Operations

from support.child import Child
from support.namespaces import CLONE_NEWNS, unshare

MOUNTED_ON = "/mnt"  # in a mount namespace of the server's own
NAME = "file"


class SlowFile:
    """`size` bytes of a file; the first access sleeps until deliver(). A context manager."""

    def __init__(self, size: int) -> None:
        self._server = Child(_serve, size, os.getpid())
        fd = recv_handle(self._server.channel)
        self._server.channel.recv()  # the server has closed it
        self._map = mmap.mmap(fd, size, mmap.MAP_PRIVATE)
        os.close(fd)
        self.view = memoryview(self._map)

    def wait_for_fault(self, timeout: float = 10.0) -> None:
        """Returns once somebody waits for the file."""
        if not self._server.channel.poll(timeout):
            raise TimeoutError(f"nobody accesses the file within {timeout} s")
        self._server.channel.recv()

    def deliver(self) -> None:
        """The contents are there, zeros, and who waits for them goes on."""
        self._server.channel.send(None)

    def __enter__(self) -> SlowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()  # ends the mount, and an access that waits


class _Slow(Operations):
    """One file, of which nothing is read before the test says so."""

    use_ns = True  # of times; fusepy warns where it is not set

    def __init__(self, channel: Channel, size: int, tester: int) -> None:
        self._channel = channel
        self._size = size
        self._tester = tester
        self._delivered = False

    def init(self, path: str) -> None:
        # the file can be opened once init() has returned
        threading.Thread(target=self._hand_over, daemon=True).start()

    def _hand_over(self) -> None:
        fd = os.open(f"{MOUNTED_ON}/{NAME}", os.O_RDONLY)
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


def _serve(channel: Channel, size: int, tester: int) -> None:
    unshare(CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    # libfuse mounts on empty directories only
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", MOUNTED_ON], check=True)
    FUSE(_Slow(channel, size, tester), MOUNTED_ON, foreground=True, nothreads=True)
