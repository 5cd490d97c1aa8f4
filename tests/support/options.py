"""What a program sees of a socket with an option that no member of a sockhash honours."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support.traffic import Connection, connect, dial, echo, listen, read_exactly, set_nodelay

SO_ZEROCOPY, MSG_ZEROCOPY, SO_EE_ORIGIN_ZEROCOPY = 60, 0x4000000, 5
TCP_REPAIR, TCP_QUEUE_SEQ, TCP_REPAIR_QUEUE, TCP_ULP, TCP_INQ = 19, 21, 20, 31, 36
SIOCATMARK = 0x8905
SHORT_MS, LONG_MS = 50, 5000
kept: list[Connection] = []  # not closed before they have left the sockhash


def poll(sock: socket.socket, wait: int, events: int = select.POLLIN) -> bool:
    waiter = select.poll()
    waiter.register(sock, events)
    return bool(waiter.poll(wait))


def wait_acknowledged(sock: socket.socket) -> None:
    """Returns once all that TCP sent has reached the peer's queue; it polls for that."""
    deadline = time.monotonic() + LONG_MS / 1000
    while any(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))):  # SIOCOUTQ: not acknowledged yet
        if time.monotonic() > deadline:
            raise TimeoutError(f"data is not acknowledged within {LONG_MS} ms")
        time.sleep(0.001)


def rcvlowat(own: socket.socket, other: socket.socket) -> list[Any]:
    """`own` has SO_RCVLOWAT 100."""
    other.sendall(b"a" * 10)
    seen: list[Any] = [poll(own, SHORT_MS)]
    other.sendall(b"b" * 90)
    seen += [poll(own, LONG_MS), own.recv(1000)]
    other.sendall(b"c" * 99)
    seen.append(poll(own, SHORT_MS))
    other.shutdown(socket.SHUT_WR)
    seen += [poll(own, LONG_MS), own.recv(1000), own.recv(1000)]
    return seen


def zerocopy(own: socket.socket, other: socket.socket) -> list[Any]:
    """Each send has a completion with its number, which says that loopback has copied."""
    size = 30_000
    for _ in range(3):
        own.send(b"x" * size, MSG_ZEROCOPY)
    received = len(read_exactly(other, 3 * size))
    completed: set[int] = set()
    while len(completed) < 3 and poll(own, LONG_MS, 0):
        _data, control, _flags, _address = own.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        for _level, _type, data in control:
            _errno, origin, _, _, _, first, last = struct.unpack_from("=IBBBBII", data)
            if origin == SO_EE_ORIGIN_ZEROCOPY:
                completed |= set(range(first, last + 1))
    return [received, completed]


def oobinline(own: socket.socket, other: socket.socket) -> list[Any]:
    """The urgent byte is in line, and the mark stands before it."""
    other.sendall(b"normal")
    other.send(b"!", socket.MSG_OOB)
    other.sendall(b"more")
    wait_acknowledged(other)  # how much one recv() gives depends on what has arrived
    seen: list[Any] = []
    for _ in range(3):
        if not poll(own, LONG_MS):
            break
        at_mark = struct.unpack("i", fcntl.ioctl(own, SIOCATMARK, bytes(4)))[0]
        seen.append((at_mark, own.recv(100)))
        if seen[-1][1].endswith(b"more"):
            break
    return seen


def repair(own: socket.socket, other: socket.socket) -> list[Any]:
    """Sequence numbers count what was sent, and the connection goes on after the repair."""

    def sequence(sock: socket.socket) -> int:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, 2)
        return sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF

    before = sequence(own)
    own.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
    own.sendall(b"x" * 1000)
    data = read_exactly(other, 1000)
    own.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    sent = (sequence(own) - before) & 0xFFFFFFFF
    own.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
    other.sendall(data)
    return [sent, read_exactly(own, 1000) == data]


def inq(own: socket.socket, other: socket.socket) -> list[Any]:
    """recvmsg() tells in a control message how much is left."""
    other.sendall(b"x" * 100)
    seen = []
    for size in (40, 60):
        read_exactly(own, size - 1)
        seen.append(own.recvmsg(1, 100)[1])
    return seen


@dataclass(frozen=True)
class Option:
    name: str
    level: int
    number: int
    value: int | bytes
    behaviour: Callable[[socket.socket, socket.socket], list[Any]]
    inherited: bool = True  # may be set on a listener

    def set(self, sock: socket.socket) -> None:
        sock.setsockopt(self.level, self.number, self.value)


OPTIONS = {
    option.name: option
    for option in (
        Option("rcvlowat", socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100, rcvlowat),
        Option("zerocopy", socket.SOL_SOCKET, SO_ZEROCOPY, 1, zerocopy),
        Option("oobinline", socket.SOL_SOCKET, socket.SO_OOBINLINE, 1, oobinline),
        Option("option", socket.IPPROTO_TCP, TCP_INQ, 1, inq),
        Option("repair", socket.IPPROTO_TCP, TCP_REPAIR, 1, repair, inherited=False),
    )
}


def on_live(option: Option, side: str) -> list[Any]:
    """On one end of a connection in use."""
    with listen() as listener:
        both = connect(listener)
    kept.append(both)
    echo(both, 5)
    own, other = (both.client, both.server) if side == "client" else (both.server, both.client)
    option.set(own)
    return option.behaviour(own, other)


def before_connect(option: Option) -> list[Any]:
    client = socket.socket()
    with listen() as listener:
        option.set(client)
        client.connect(listener.getsockname())
        both = Connection(client, listener.accept()[0])
        return ready(option, both, both.client, both.server)


def while_connecting(option: Option) -> list[Any]:
    client = socket.socket()
    with listen() as listener:
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
        option.set(client)
        client.setblocking(True)
        both = Connection(client, listener.accept()[0])
        return ready(option, both, both.client, both.server)


def on_listener(option: Option) -> list[Any]:
    with listen() as listener:
        option.set(listener)
        client = dial(listener)
        both = Connection(client, listener.accept()[0])
        return ready(option, both, both.server, both.client)


def ready(option: Option, both: Connection, own: socket.socket, other: socket.socket) -> list[Any]:
    kept.append(both)
    set_nodelay(both.client)
    set_nodelay(both.server)
    return option.behaviour(own, other)
