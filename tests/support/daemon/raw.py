"""D-Bus messages built by hand, as no library would, and a connection that sends them."""

from __future__ import annotations

import array
import os
import re
import select
import socket
import struct
import time
from types import TracebackType

from .client import INTERFACE, NAME, PATH

CALL, ERROR = 1, 3
NO_REPLY = 1
_PIECE = 64 << 10
_TYPES = {1: "o", 2: "s", 3: "s", 4: "s", 5: "u", 6: "s", 7: "s", 8: "g", 9: "u"}


def field(code: int, value: str | int, endian: str = "<") -> bytes:
    """A header field, without the padding before it."""
    kind = _TYPES[code]
    head = bytes([code, 1]) + kind.encode() + b"\0"
    if isinstance(value, int):
        return head + struct.pack(f"{endian}I", value)
    data = value.encode()
    length = bytes([len(data)]) if kind == "g" else struct.pack(f"{endian}I", len(data))
    return head + length + data + b"\0"


def build(
    kind: int,
    serial: int,
    fields: dict[int, str | int],
    body: bytes = b"",
    *,
    flags: int = 0,
    endian: str = "<",
) -> bytes:
    packed = b""
    for code, value in fields.items():
        packed += bytes(-len(packed) % 8) + field(code, value, endian)
    order = b"l" if endian == "<" else b"B"
    head = struct.pack(f"{endian}cBBBIII", order, kind, flags, 1, len(body), serial, len(packed))
    return head + packed + bytes(-len(packed) % 8) + body


def call(
    member: str,
    serial: int,
    signature: str = "",
    body: bytes = b"",
    *,
    flags: int = 0,
    interface: str = INTERFACE,
    fds: int = 0,
) -> bytes:
    fields: dict[int, str | int] = {1: PATH, 6: NAME, 2: interface, 3: member}
    if signature:
        fields[8] = signature
    if fds:
        fields[9] = fds
    return build(CALL, serial, fields, body, flags=flags)


def array_of(element: bytes, size: int) -> bytes:
    """The body of one array, about `size` bytes of equal elements."""
    data = element * (size // len(element))
    return struct.pack("<I", len(data)) + data


class Raw:
    """Authenticated as the user of this process. Messages with serials of the caller's choice."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address.removeprefix("unix:path="))
        uid = str(os.getuid()).encode().hex().encode()
        self._socket.sendall(b"\0AUTH EXTERNAL " + uid + b"\r\n")
        self._socket.recv(100)
        self._socket.sendall(b"NEGOTIATE_UNIX_FD\r\n")
        self._socket.recv(100)
        self._socket.sendall(b"BEGIN\r\n")
        self._received = b""
        bus = "org.freedesktop.DBus"
        hello: dict[int, str | int] = {1: "/org/freedesktop/DBus", 6: bus, 2: bus, 3: "Hello"}
        self.send(build(CALL, 1, hello))
        self._until(lambda text: b"NameAcquired" in text, 10)

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            data = data[self._socket.sendmsg([data], rights) :]
        self._socket.sendall(data)

    def send_array(
        self, member: str, serial: int, signature: str, element: bytes, size: int
    ) -> None:
        """As call() with array_of(), a piece at a time: whoever sends has little memory."""
        piece = element * (_PIECE // len(element))
        head = bytearray(call(member, serial, signature, struct.pack("<I", size)))
        struct.pack_into("<I", head, 4, size + 4)  # of the body
        self.send(bytes(head))
        for at in range(0, size, len(piece)):
            self.send(piece[: size - at])

    def errors(self, count: int, timeout: float) -> list[str]:
        """The names of the next `count` errors, or of as many as come in time."""
        pattern = re.compile(rb"\x04\x01s\0....([A-Za-z.0-9]+)\0", re.DOTALL)
        text = self._until(lambda text: len(pattern.findall(text)) >= count, timeout)
        return [name.decode() for name in pattern.findall(text)]

    def answers(self, count: int, timeout: float) -> bytes:
        """What has come with `count` answers to calls of serials, good or bad."""
        pattern = re.compile(rb"\x05\x01u\0")
        return self._until(lambda text: len(pattern.findall(text)) >= count, timeout)

    def _until(self, done: object, timeout: float) -> bytes:
        assert callable(done)
        end = time.monotonic() + timeout
        while not done(self._received):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                break
            data = self._socket.recv(1 << 16)
            if not data:
                break
            self._received += data
        received, self._received = self._received, b""
        return received

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
