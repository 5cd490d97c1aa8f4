"""Cuts the byte stream of a D-Bus connection into messages, and reads their headers.

dbus-next unmarshals a message, whatever its size, before anybody can ask who sent it, at half a
second for each megabyte of variants. Here its first 16 bytes decide: the body of a message that is
too large is passed over and never kept.

The format is that of the D-Bus specification, "Message Protocol".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Bytes. EnableWith() takes lists of ports, 4 bytes each; no other body is larger than a few names.
BODY_LIMIT = 64 << 10
# Of the array of header fields: an object path, and up to five names of at most 255 bytes.
FIELDS_LIMIT = 8 << 10

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = range(1, 5)
NO_REPLY_EXPECTED = 1
ALLOW_INTERACTIVE_AUTHORIZATION = 4

_FIXED = 16  # endianness, type, flags, version, length of the body, serial, length of the fields
_ENDIAN = {ord("l"): "<", ord("B"): ">"}
_MESSAGE_LIMIT = 128 << 20  # of the specification
# By field code: the name of the attribute and the type that the specification gives the field
_FIELDS = {
    1: ("path", "o"),
    2: ("interface", "s"),
    3: ("member", "s"),
    4: ("error_name", "s"),
    5: ("reply_serial", "u"),
    6: ("destination", "s"),
    7: ("sender", "s"),
    8: ("signature", "g"),
    9: ("fds", "u"),
}


class Malformed(Exception):
    """A message is not as the specification demands. The bus lets no such message through."""


@dataclass
class Header:
    """A field that is missing is empty, or 0."""

    kind: int
    flags: int
    serial: int
    body_bytes: int
    path: str = ""
    interface: str = ""
    member: str = ""
    error_name: str = ""
    reply_serial: int = 0
    destination: str = ""
    sender: str = ""
    signature: str = ""
    fds: int = 0


@dataclass
class Frame:
    """A message at [start, end) of the stream."""

    start: int
    end: int
    header: Header | None  # None if its fields are too long to keep, or malformed
    raw: bytes  # the whole message; empty if it is larger than the limits


class Framer:
    """Cuts the stream that feed() is given into messages.

    It keeps less than both limits together, however large the messages are.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0  # of the buffer in the stream
        self._passed = 0  # bytes to come of a message that is passed over
        self.position = 0  # in the stream, behind all that was fed

    @property
    def unframed(self) -> int:
        """Where the first message begins that may still become a frame."""
        return self._start + self._passed

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The messages that `data` completes; one that is too large as soon as its header is there.

        Raises Malformed if the stream cannot be cut any further.
        """
        self.position += len(data)
        if self._passed:
            passed = min(self._passed, len(data))
            self._passed -= passed
            self._start += passed
            data = data[passed:]
        self._buffer += data
        at = 0
        try:
            while (frame := self._next(at)) is not None:
                at = min(frame.end - self._start, len(self._buffer))
                self._passed = frame.end - self._start - at
                yield frame
        finally:
            del self._buffer[:at]
            self._start += at

    def _next(self, at: int) -> Frame | None:
        """The message `at` bytes into the buffer, once there is enough of it."""
        buffer = self._buffer
        if len(buffer) - at < _FIXED:
            return None
        endian, version = _ENDIAN.get(buffer[at]), buffer[at + 3]
        if endian is None or version != 1:
            raise Malformed(f"byte order {buffer[at]}, protocol version {version}")
        _, kind, flags, _, body_bytes, serial, fields = struct.unpack_from(
            f"{endian}BBBBIII", buffer, at
        )
        head = _FIXED + fields + -fields % 8
        size = head + body_bytes
        if size > _MESSAGE_LIMIT:
            raise Malformed(f"a message of {size} bytes")
        start = self._start + at
        if fields > FIELDS_LIMIT:
            return Frame(start, start + size, None, b"")
        large = body_bytes > BODY_LIMIT
        if len(buffer) - at < (head if large else size):
            return None
        header: Header | None = Header(kind, flags, serial, body_bytes)
        try:
            if not serial:
                raise Malformed("no serial")
            _read_fields(header, bytes(buffer[at + _FIXED : at + _FIXED + fields]), endian)
        except (Malformed, struct.error, UnicodeDecodeError, IndexError):
            header = None
        raw = b"" if large else bytes(buffer[at : at + size])
        return Frame(start, start + size, header, raw)


def _read_fields(header: Header | None, fields: bytes, endian: str) -> None:
    """Raises Malformed, or what struct and decode() raise."""
    at = 0
    while at < len(fields):
        at += -at % 8
        name, expected = _FIELDS.get(fields[at], ("", ""))
        kind = fields[at + 1 : at + 4]
        if not name or kind != b"\1" + expected.encode() + b"\0":
            raise Malformed(f"header field {fields[at]} of type {kind!r}")
        at += 4
        value: int | str
        if expected == "g":
            length, at = fields[at], at + 1
        else:
            (length,) = struct.unpack_from(f"{endian}I", fields, at)
            at += 4
        if expected == "u":
            value = length
        else:
            if at + length >= len(fields) or fields[at + length]:
                raise Malformed(f"header field {name} has no end")
            value = fields[at : at + length].decode()
            at += length + 1
        setattr(header, name, value)
