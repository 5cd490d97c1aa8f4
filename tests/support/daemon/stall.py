"""A reader that does not read: functions for an Actor, which keeps the connections."""

from __future__ import annotations

import errno
import socket

from support.traffic import Connection, Stream, check_native, connect, echo, listen, pattern

CHUNK = 4096
MESSAGES = 100
_held: list[tuple[Connection, int]] = []


def send_unread(size: int) -> None:
    """A new connection whose server end leaves `size` bytes unread."""
    with listen() as listener:
        both = connect(listener)
    for position in range(0, size, CHUNK):
        both.client.sendall(pattern(position, min(CHUNK, size - position)))
    _held.append((both, size))


def read_all() -> None:
    """The server ends read what they left, every byte checked, and both talk on."""
    for both, size in _held:
        Stream().read(both.server, size)
    talk()


def talk() -> None:
    """Each connection carries MESSAGES."""
    for both, _ in _held:
        echo(both, MESSAGES // 2)


def check_all_native() -> None:
    for both, _ in _held:
        check_native(both.client, both.server)
        check_native(both.server, both.client)


def errors() -> list[str]:
    """What client and server end of each connection meet behind the data there is, e.g. EOF."""
    return [_end_of(end) for both, _ in _held for end in (both.client, both.server)]


def _end_of(end: socket.socket) -> str:
    try:
        while end.recv(1 << 16):
            pass
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "EOF"
