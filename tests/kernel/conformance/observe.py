"""What a system call gave, in words that can be compared."""

from __future__ import annotations

import errno
import select
import socket
import zlib
from collections.abc import Callable
from typing import Any

SHOWN = 24  # bytes shown as they are

MASKS = {
    "IN": select.POLLIN,
    "PRI": select.POLLPRI,
    "OUT": select.POLLOUT,
    "RDHUP": select.POLLRDHUP,
    "HUP": select.POLLHUP,
    "ERR": select.POLLERR,
    "NVAL": select.POLLNVAL,
}
EVERYTHING = select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDHUP


def mask(bits: int) -> str:
    """poll(2) events; epoll(7) uses the same bits."""
    return "|".join(name for name, bit in MASKS.items() if bits & bit) or "none"


def value(what: object) -> Any:
    """As JSON can hold it."""
    if isinstance(what, bytes | bytearray | memoryview):
        data = bytes(what)
        if not data:
            return "end of file"
        if len(data) <= SHOWN:
            return repr(data)[1:]
        return f"{len(data)} bytes, crc {zlib.crc32(data):08x}"
    if what is None:
        return "done"
    if isinstance(what, list | tuple):
        return [value(item) for item in what]
    if isinstance(what, str | int | bool | dict):
        return what
    raise TypeError(f"{what!r} is no observation")


def error(raised: OSError) -> str:
    if raised.errno is None:
        raise raised
    return errno.errorcode[raised.errno]


def outcome(function: Callable[..., object], *arguments: Any) -> Any:
    """What the call returned, or the name of its errno."""
    try:
        return value(function(*arguments))
    except OSError as raised:
        return error(raised)


def events(sock: socket.socket, timeout_ms: int = 0) -> str:
    """What poll(2) says of the socket, at once or after waiting for anything."""
    poll = select.poll()
    poll.register(sock, EVERYTHING)
    found = poll.poll(timeout_ms)
    return mask(found[0][1]) if found else "none"


def pending_error(sock: socket.socket) -> str:
    """SO_ERROR, which getsockopt clears."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode[number] if number else "none"


def same(data: bytes, wanted: bytes) -> str:
    """For long streams."""
    if data == wanted:
        return "intact"
    if sorted(data) == sorted(wanted):
        return "out of order"
    return f"corrupted, {len(data)} of {len(wanted)} bytes"
