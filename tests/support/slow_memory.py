"""Memory that is slow to come, as from swap or NFS: a copy to it waits until it is delivered."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import select
import struct

from support.namespaces import libc

_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[platform.machine()]
# include/uapi/linux/userfaultfd.h
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_ZEROPAGE = 0xC020AA04
_UFFD_API = 0xAA
_REGISTER_MODE_MISSING = 1
_MESSAGE_SIZE = 32  # struct uffd_msg


class SlowMemory:
    """`size` bytes of memory; the first access to it sleeps until deliver(). A context manager."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._map)
        self._fd = libc.syscall(_USERFAULTFD, os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        fcntl.ioctl(self._fd, _UFFDIO_API, struct.pack("QQQ", _UFFD_API, 0, 0))
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._range = struct.pack("QQ", start, len(self._map))
        registered = self._range + struct.pack("QQ", _REGISTER_MODE_MISSING, 0)
        fcntl.ioctl(self._fd, _UFFDIO_REGISTER, registered)

    def wait_for_fault(self, timeout: float = 10.0) -> None:
        """Returns once somebody waits for the memory."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise TimeoutError(f"nobody accesses the memory within {timeout} s")
        os.read(self._fd, _MESSAGE_SIZE)

    def deliver(self) -> None:
        """The memory is there, filled with zeros, and who waits for it goes on."""
        fcntl.ioctl(self._fd, _UFFDIO_ZEROPAGE, self._range + bytes(16))

    def __enter__(self) -> SlowMemory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)  # who still waits goes on as well
