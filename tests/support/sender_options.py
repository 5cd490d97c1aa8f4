"""Options by which a program relies on what TCP does with its packets, and what it sees of each."""

from __future__ import annotations

import ctypes
import platform
import select
import socket
import struct
import time
from contextlib import suppress
from typing import Any

from support.background import Background
from support.namespaces import libc
from support.options import LONG_MS, SHORT_MS, Option, poll
from support.traffic import read_exactly

SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_ATTACH_BPF = 26, 27, 50
SO_MAX_PACING_RATE, SO_TXTIME = 47, 61
TCP_USER_TIMEOUT, TCP_TX_DELAY = 18, 37
LINGER_S = 1
TIMEOUT_MS = 500
PACED = 1_000_000  # bytes, half a second's
UNPACED_S = 0.15  # a tenth of that; the first ten segments of 64 KiB are not paced
MOST = 16 << 20  # more than TCP takes for a reader that does not read
_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_BPF_PROG_LOAD, _SOCKET_FILTER = 5, 1


def _push(sock: socket.socket) -> None:
    """Until TCP takes no more."""
    data = bytes(65536)
    sock.setblocking(False)
    with suppress(BlockingIOError):
        for _ in range(MOST // len(data)):
            sock.send(data)


def linger(own: socket.socket, other: socket.socket) -> list[Any]:
    """close() waits for what the peer has not taken."""
    _push(own)
    own.setblocking(True)
    started = time.monotonic()
    own.close()
    return [time.monotonic() - started >= LINGER_S * 0.8]


def user_timeout(own: socket.socket, other: socket.socket) -> list[Any]:
    """The connection ends when the peer's window has stayed closed for that long."""
    _push(own)
    return [
        poll(own, 4 * LONG_MS, select.POLLERR),
        own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    ]


def pacing(own: socket.socket, other: socket.socket) -> list[Any]:
    started = time.monotonic()
    reader = Background(read_exactly, other, PACED)
    for _ in range(10):
        own.sendall(bytes(PACED // 10))
    reader.join()
    return [time.monotonic() - started >= UNPACED_S]


def attach_filter(own: socket.socket, other: socket.socket) -> list[Any]:
    """What the filter drops arrives when it is gone."""
    other.sendall(b"x" * 100)
    seen: list[Any] = [poll(own, SHORT_MS)]
    own.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    seen += [poll(own, LONG_MS), read_exactly(own, 100)]
    return seen


def nothing(own: socket.socket, other: socket.socket) -> list[Any]:
    own.sendall(b"x" * 100)
    return [read_exactly(other, 100)]


# passes segments without data: ldb [12]; rsh 2; and 0x3c; tax; ld len; jeq x; ret 0; ret ~0
_CODE = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        *((0x30, 0, 0, 12), (0x74, 0, 0, 2), (0x54, 0, 0, 0x3C), (0x07, 0, 0, 0)),
        *((0x80, 0, 0, 0), (0x1D, 1, 0, 0), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)),
    )
)
_code = ctypes.create_string_buffer(_CODE)
NO_DATA = struct.pack("HxxxxxxQ", len(_CODE) // 8, ctypes.addressof(_code))  # struct sock_fprog


def pass_all() -> int:
    """A descriptor of an eBPF socket filter."""
    code = ctypes.create_string_buffer(bytes.fromhex("b7000000ffffffff9500000000000000"), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "IIQQIIQII",
        *(_SOCKET_FILTER, 2, ctypes.addressof(code), ctypes.addressof(licence)),
        *(0, 0, 0, 0, 0),
    )
    fd: int = libc.syscall(_BPF, _BPF_PROG_LOAD, attributes, len(attributes))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "BPF_PROG_LOAD")
    return fd


def _socket(number: int, value: int | bytes, behaviour: Any) -> Option:
    return Option("option", socket.SOL_SOCKET, number, value, behaviour)


def _tcp(number: int, value: int, behaviour: Any) -> Option:
    return Option("option", socket.IPPROTO_TCP, number, value, behaviour)


# those that show, on a connection of one host
SHOWING = {
    "SO_LINGER": _socket(socket.SO_LINGER, struct.pack("ii", 1, LINGER_S), linger),
    "SO_MAX_PACING_RATE": _socket(SO_MAX_PACING_RATE, 2 * PACED, pacing),
    "SO_MAX_PACING_RATE, 64 bits": _socket(SO_MAX_PACING_RATE, struct.pack("Q", 2 * PACED), pacing),
    "TCP_USER_TIMEOUT": _tcp(TCP_USER_TIMEOUT, TIMEOUT_MS, user_timeout),
    "SO_ATTACH_FILTER": _socket(SO_ATTACH_FILTER, NO_DATA, attach_filter),
}
OTHERS = {
    "SO_TXTIME": _socket(SO_TXTIME, struct.pack("iI", 1, 0), nothing),
    "TCP_TX_DELAY": _tcp(TCP_TX_DELAY, 1000, nothing),
}
