"""Requests over netlink(7), to sock_diag and rtnetlink."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

# include/uapi/linux/netlink.h
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLA_TYPE_MASK = 0x3FFF
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


def dump(family: int, request: int, body: bytes, what: str) -> Iterator[bytes]:
    """The answers to a request for all objects of a kind, without their message headers.

    Raises OSError, with `what` in its text.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as netlink:
        size = _HEADER.size + len(body)
        netlink.send(_HEADER.pack(size, request, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
        while True:
            data = netlink.recv(1 << 16)
            while data:
                length, kind, *_ = _header(data, what)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    error = -struct.unpack_from("=i", data, _HEADER.size)[0]
                    raise OSError(error, f"{what}: {os.strerror(error)}")
                yield data[_HEADER.size : length]
                data = data[(length + 3) & ~3 :]


def ask(family: int, request: int, body: bytes, what: str) -> bytes:
    """The answer to a request for one object, without its message header. Raises OSError."""
    return _exchange(family, request, _NLM_F_REQUEST, body, what)


def order(family: int, request: int, body: bytes, what: str) -> None:
    """Requests a change, and waits until the kernel confirms it. Raises OSError."""
    _exchange(family, request, _NLM_F_REQUEST | _NLM_F_ACK, body, what)


def _exchange(family: int, request: int, flags: int, body: bytes, what: str) -> bytes:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as netlink:
        size = _HEADER.size + len(body)
        netlink.send(_HEADER.pack(size, request, flags, 1, 0) + body)
        answer = netlink.recv(1 << 16)
    length, kind, *_ = _header(answer, what)
    if kind == _NLMSG_ERROR:
        error = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if error:
            raise OSError(error, f"{what}: {os.strerror(error)}")
    return answer[_HEADER.size : length]


def _header(data: bytes, what: str) -> tuple[int, ...]:
    """Of the first message in `data`. Raises OSError if that is not whole."""
    if len(data) >= _HEADER.size:
        header = _HEADER.unpack_from(data)
        if _HEADER.size <= header[0] <= len(data):
            return header
    raise OSError(errno.EBADMSG, f"{what}: an answer that was cut off")


def attributes(raw: bytes) -> dict[int, bytes]:
    """Attributes by their types. Those that are nested in another are left as bytes."""
    found = {}
    while len(raw) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(raw)
        if length < _ATTRIBUTE.size:  # there is no next one
            break
        found[kind & _NLA_TYPE_MASK] = raw[_ATTRIBUTE.size : length]
        raw = raw[(length + 3) & ~3 :]
    return found
