"""TCP sockets of a network namespace, from the kernel by sock_diag(7)."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from sockredird.errors import InvalidConfig

ESTABLISHED, CLOSE_WAIT, LISTEN = 1, 8, 10  # include/net/tcp_states.h
_STATES = 1 << ESTABLISHED | 1 << 4 | 1 << 5 | 1 << CLOSE_WAIT | 1 << LISTEN  # 4, 5: FIN_WAIT*

# include/uapi/linux/netlink.h, sock_diag.h, inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI48x")
_MESSAGE = struct.Struct("=BBxx2s2s16s16s12x3I2I")
_ATTRIBUTE = struct.Struct("=HH")
_ULP_INFO, _CGROUP_ID = 19, 21
_ULP_NAME = 1
_WANT_INFO = 1 << 1  # INET_DIAG_INFO, without which the kernel does not tell the ULP
_SO_NETNS_COOKIE = 71
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Address:
    """An IPv4-mapped address is its IPv4 address, as the two meet."""

    ip: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}" if self.ip.version == 4 else f"[{self.ip}]:{self.port}"

    @property
    def packed(self) -> bytes:
        """Always 16 bytes, IPv4 v4-mapped."""
        return self.ip.packed if self.ip.version == 6 else bytes(10) + b"\xff\xff" + self.ip.packed

    @classmethod
    def parse(cls, text: str) -> Address:
        host, _, port = text.rpartition(":")
        try:
            number = int(port)
            if not 0 < number < 65536:
                raise ValueError("no such port")
            return cls(_unmapped(ip_address(host.removeprefix("[").removesuffix("]"))), number)
        except ValueError:
            raise InvalidConfig(
                f"{text!r} is no address: write 127.0.0.1:6379 or [::1]:6379"
            ) from None


@dataclass(frozen=True)
class Socket:
    local: Address
    remote: Address
    state: int
    uid: int
    inode: int  # 0: no program has it open (any more)
    cgroup: int  # id; 0: unknown
    ulp: str

    @property
    def listening(self) -> bool:
        return self.state == LISTEN


def _unmapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


def _attributes(raw: bytes) -> dict[int, bytes]:
    found = {}
    while len(raw) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(raw)
        found[kind & 0x3FFF] = raw[_ATTRIBUTE.size : length]
        raw = raw[(length + 3) & ~3 :]
    return found


def _parse(raw: bytes) -> Socket:
    family, state, sport, dport, src, dst, _, _, _, uid, inode = _MESSAGE.unpack_from(raw)
    attributes = _attributes(raw[_MESSAGE.size :])

    def address(ip: bytes, port: bytes) -> Address:
        parsed = IPv4Address(ip[:4]) if family == socket.AF_INET else _unmapped(IPv6Address(ip))
        return Address(parsed, int.from_bytes(port, "big"))

    ulp = _attributes(attributes.get(_ULP_INFO, b"")).get(_ULP_NAME, b"")
    return Socket(
        local=address(src, sport),
        remote=address(dst, dport),
        state=state,
        uid=uid,
        inode=inode,
        cgroup=int.from_bytes(attributes.get(_CGROUP_ID, b""), "little"),
        ulp=ulp.rstrip(b"\0").decode(errors="replace"),
    )


def _dump(family: int) -> Iterator[Socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, _WANT_INFO, _STATES)
        size = _HEADER.size + len(body)
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        netlink.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + body)
        while True:
            data = netlink.recv(1 << 16)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    error = -struct.unpack_from("=i", data, _HEADER.size)[0]
                    raise OSError(error, f"sock_diag: {os.strerror(error)}")
                yield _parse(data[_HEADER.size : length])
                data = data[(length + 3) & ~3 :]


@dataclass(frozen=True)
class Namespace:
    """The TCP sockets of one network namespace at one time."""

    cookie: int
    sockets: list[Socket]


def _look() -> Namespace:
    with socket.socket(socket.AF_UNIX) as probe:  # every socket knows its namespace
        cookie = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    sockets = [*_dump(socket.AF_INET), *_dump(socket.AF_INET6)]
    return Namespace(int.from_bytes(cookie, "little"), sockets)


def look(pid: int = 0) -> Namespace:
    """The namespace of a process, or the daemon's. Raises InvalidConfig if there is no such one."""
    if not pid:
        return _look()
    path = Path(f"/proc/{pid}/ns/net")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InvalidConfig(f"there is no process {pid}") from None
    except PermissionError:  # the service has no CAP_SYS_PTRACE
        return _look()

    def inside() -> Namespace:
        # of this thread only, which ends with the namespace it is in
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
