"""The addresses of this host, those of the daemon's network namespace, from rtnetlink(7)."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

from sockredird.kernel.netlink import attributes, dump

# include/uapi/linux/rtnetlink.h, if_addr.h
_RTM_GETADDR = 22
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFADDRMSG = struct.Struct("=BBBBI")
_SO_NETNS_COOKIE = 71
_V4_MAPPED = bytes(10) + b"\xff\xff"


def netns_cookie() -> int:
    """The cookie of the calling thread's network namespace (SO_NETNS_COOKIE)."""
    with socket.socket(socket.AF_UNIX) as probe:  # any socket has it
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")


def own() -> set[bytes]:
    """The addresses of all interfaces, 16 bytes each; IPv4 ones are v4-mapped."""
    request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    found = set()
    for message in dump(socket.NETLINK_ROUTE, _RTM_GETADDR, request, "addresses of this host"):
        has = attributes(message[_IFADDRMSG.size :])
        # on a point-to-point link IFA_ADDRESS is the address of the other end
        ip = has.get(_IFA_LOCAL) or has.get(_IFA_ADDRESS)
        if ip:
            found.add(_V4_MAPPED + ip if len(ip) == 4 else ip)
    return found


class Changes:
    """Watches, in the event loop, for addresses that are added or removed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` is called after each change; own() returns the addresses there are then."""
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._netlink.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        self._netlink.setblocking(False)
        self._loop.add_reader(self._netlink, self._drain)

    def _drain(self) -> None:
        while True:
            try:
                self._netlink.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                # ENOBUFS: messages were lost, but we only need to know that something changed
                if error.errno != errno.ENOBUFS:
                    raise
        self._changed()

    def close(self) -> None:
        self._loop.remove_reader(self._netlink)
        self._netlink.close()
