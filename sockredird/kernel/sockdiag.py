"""The TCP sockets of a network namespace, from sock_diag(7)."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from sockredird.errors import InvalidConfig
from sockredird.kernel.addresses import netns_cookie
from sockredird.kernel.netlink import ask, attributes, dump, order

ESTABLISHED, CLOSE_WAIT, LISTEN = 1, 8, 10  # include/net/tcp_states.h
_CONNECTED = (ESTABLISHED, 4, 5, CLOSE_WAIT)  # 4, 5: FIN_WAIT*
_STATES = sum(1 << state for state in (*_CONNECTED, LISTEN))

# include/uapi/linux/netlink.h, sock_diag.h, inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_REQUEST = struct.Struct("=BBBxI48x")
_REQUEST_OF_ONE = struct.Struct("=BBxxI2s2s16s16s4x8s")  # struct inet_diag_req_v2
_NO_COOKIE = bytes([0xFF] * 8)
_V4_MAPPED = bytes(10) + b"\xff\xff"
_MESSAGE = struct.Struct("=BBxx2s2s16s16s4x8s3I2I")  # struct inet_diag_msg
_INFO, _ULP_INFO, _CGROUP_ID = 2, 19, 21
# tcpi_bytes_received and tcpi_data_segs_in of struct tcp_info, include/uapi/linux/tcp.h
_RECEIVED = struct.Struct("=128xQ16xI")
_ULP_NAME = 1
_WANT_INFO = 1 << (_INFO - 1)  # without it the kernel leaves out the ULP, too
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Address:
    """An address and a port. A v4-mapped address is stored as IPv4, since the two can be peers."""

    ip: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}" if self.ip.version == 4 else f"[{self.ip}]:{self.port}"

    @property
    def packed(self) -> bytes:
        """The address in 16 bytes; IPv4 addresses are v4-mapped."""
        return self.ip.packed if self.ip.version == 6 else bytes(10) + b"\xff\xff" + self.ip.packed

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises InvalidConfig unless `text` is as str() gives it."""
        host, _, port = text.rpartition(":")
        try:
            number = int(port)
            if not 0 < number < 65536:
                raise ValueError("no such port")
            return cls(_unmapped(ip_address(host.removeprefix("[").removesuffix("]"))), number)
        except ValueError:
            raise InvalidConfig(
                f"{text!r} is not an address with a port: write 127.0.0.1:6379 or [::1]:6379"
            ) from None


@dataclass(frozen=True)
class Socket:
    local: Address
    remote: Address
    state: int
    uid: int
    inode: int  # 0: no program has it open
    cgroup: int  # id; 0: unknown
    ulp: str
    cookie: bytes  # unique among all sockets since boot
    received_bytes: int = 0  # by TCP: what was redirected is not in it
    received_segments: int = 0  # with data, modulo 2^32

    @property
    def listening(self) -> bool:
        return self.state == LISTEN


def _unmapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


def _parse(raw: bytes) -> Socket:
    family, state, sport, dport, src, dst, cookie, _, _, _, uid, inode = _MESSAGE.unpack_from(raw)
    has = attributes(raw[_MESSAGE.size :])

    def address(ip: bytes, port: bytes) -> Address:
        parsed = IPv4Address(ip[:4]) if family == socket.AF_INET else _unmapped(IPv6Address(ip))
        return Address(parsed, int.from_bytes(port, "big"))

    info = has.get(_INFO, b"")
    received = _RECEIVED.unpack_from(info) if len(info) >= _RECEIVED.size else (0, 0)
    ulp = attributes(has.get(_ULP_INFO, b"")).get(_ULP_NAME, b"")
    return Socket(
        local=address(src, sport),
        remote=address(dst, dport),
        state=state,
        uid=uid,
        inode=inode,
        cgroup=int.from_bytes(has.get(_CGROUP_ID, b""), "little"),
        ulp=ulp.rstrip(b"\0").decode(errors="replace"),
        cookie=cookie,
        received_bytes=received[0],
        received_segments=received[1],
    )


def _dump(family: int) -> Iterator[Socket]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, _WANT_INFO, _STATES)
    for message in dump(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request, "sock_diag"):
        yield _parse(message)


@dataclass(frozen=True)
class Namespace:
    """The TCP sockets that a network namespace had at one time."""

    cookie: int
    sockets: list[Socket]


def destroy(local: bytes, local_port: int, remote: bytes, remote_port: int) -> None:
    """Aborts a connection from one end; addresses are 16 bytes, IPv4 v4-mapped.

    The program at that end gets ECONNABORTED, and the other end is sent a RST. Raises OSError:
    ENOENT if there is no such connection, EOPNOTSUPP without CONFIG_INET_DIAG_DESTROY.
    """
    wanted = [
        Address(_unmapped(IPv6Address(ip)), port)
        for ip, port in ((local, local_port), (remote, remote_port))
    ]
    family = socket.AF_INET6
    if local.startswith(_V4_MAPPED) and remote.startswith(_V4_MAPPED):
        family = socket.AF_INET
        local, remote = local[12:], remote[12:]  # "16s" fills up with zeros
    ports = [port.to_bytes(2, "big") for port in (local_port, remote_port)]

    def request(cookie: bytes) -> bytes:
        ends = (*ports, local, remote)
        return _REQUEST_OF_ONE.pack(family, socket.IPPROTO_TCP, _STATES, *ends, cookie)

    # If the connection is gone, the kernel finds the listener instead, and would close that
    # (inet_diag_find_one_icsk(), net/ipv4/inet_diag.c). So we look first, and then name the socket
    # that we have seen by its cookie.
    found = _parse(ask(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request(_NO_COOKIE), "sock_diag"))
    if found.state not in _CONNECTED or [found.local, found.remote] != wanted:
        raise OSError(errno.ENOENT, "sock_diag: there is no such connection")
    order(_NETLINK_SOCK_DIAG, _SOCK_DESTROY, request(found.cookie), "sock_diag")


def _look() -> Namespace:
    sockets = [*_dump(socket.AF_INET), *_dump(socket.AF_INET6)]
    return Namespace(netns_cookie(), sockets)


def look(pid: int = 0) -> Namespace:
    """The sockets in the network namespace of a process, or in the daemon's if `pid` is 0.

    Raises InvalidConfig if there is no such process.
    """
    if not pid:
        return _look()
    path = Path(f"/proc/{pid}/ns/net")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InvalidConfig(f"there is no process {pid}") from None
    except PermissionError:  # the service does not have CAP_SYS_PTRACE
        return _look()

    def inside() -> Namespace:
        # setns(2) moves this thread only, which ends in that namespace
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")
        return _look()

    try:
        if path.readlink() == Path("/proc/self/ns/net").readlink():
            return _look()
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(inside).result()
    finally:
        os.close(fd)
