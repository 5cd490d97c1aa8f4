"""A mapped file that is slow to come, as from NFS: on FUSE, with a server that waits."""

from __future__ import annotations

import importlib.util
import mmap
import os
import subprocess
from multiprocessing.connection import Connection as Channel
from multiprocessing.reduction import recv_handle
from pathlib import Path

from support.child import Child
from support.namespaces import CLONE_NEWNS, unshare

MOUNTED_ON = "/mnt"  # in a mount namespace of the server's own
# Debian 13 is the last release that has python3-fusepy; a kernel need not have FUSE
POSSIBLE = importlib.util.find_spec("fusepy") is not None and Path("/dev/fuse").exists()


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


def _serve(channel: Channel, size: int, tester: int) -> None:
    unshare(CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    # libfuse mounts on empty directories only
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", MOUNTED_ON], check=True)
    from support import slow_file_server

    slow_file_server.run(channel, size, tester, MOUNTED_ON)
