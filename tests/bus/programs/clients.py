"""Clients that poll, and compare every byte of each answer; their functions run in an Actor."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Sequence
from typing import Protocol

from support.traffic import name, pattern

PATIENCE_S = 20.0
SIZES = (1, 64, 700, 5000)


class _Client:
    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.sent = self.received = 0  # bytes
        self._poll = select.poll()
        self._poll.register(self.sock, select.POLLIN)
        self._rest = b""
        self.number = 0

    def ask(self) -> None:
        raise NotImplementedError

    def _expect(self, wanted: bytes) -> None:
        found = self._take(len(wanted))
        assert found == wanted, f"{found[:80]!r} in the place of {wanted[:80]!r}"

    def _take(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._receive()
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def _until(self, end: bytes) -> bytes:
        while end not in self._rest:
            self._receive()
        return self._take(self._rest.index(end) + len(end))

    def _receive(self) -> None:
        if not self._poll.poll(PATIENCE_S * 1000):
            raise TimeoutError(f"no answer after {len(self._rest)} bytes")
        data = self.sock.recv(65536)
        assert data, "the server has closed the connection"
        self.received += len(data)
        self._rest += data

    def _send(self, data: bytes) -> None:
        self.sock.sendall(data)
        self.sent += len(data)

    def _value(self) -> bytes:
        self.number += 1
        return pattern(self.number * 4096, SIZES[self.number % len(SIZES)])


class Redis(_Client):
    def ask(self) -> None:
        value = self._value()
        key = b"key-%d" % self.sock.getsockname()[1]
        self._command(b"SET", key, value)
        self._expect(b"+OK\r\n")
        self._command(b"GET", key)
        self._expect(b"$%d\r\n%b\r\n" % (len(value), value))

    def _command(self, *words: bytes) -> None:
        parts = (b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        self._send(b"*%d\r\n" % len(words) + b"".join(parts))


class Memcached(_Client):
    def ask(self) -> None:
        value = self._value()
        key = b"key-%d" % self.sock.getsockname()[1]
        self._send(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value))
        self._expect(b"STORED\r\n")
        self._send(b"get %b\r\n" % key)
        self._expect(b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(value), value))


PAGE = pattern(0, 3000)


class Http(_Client):
    def ask(self) -> None:
        self.number += 1
        self._send(b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = self._until(b"\r\n\r\n").lower()
        assert head.startswith(b"http/1.1 200 "), head
        assert b"content-length: %d\r\n" % len(PAGE) in head, head
        self._expect(PAGE)


class Asks(Protocol):
    number: int  # of the questions so far

    def ask(self) -> None: ...


class Pump(threading.Thread):
    """All clients in turn, until it is told to end."""

    def __init__(self, clients: Sequence[Asks], pause: float) -> None:
        super().__init__(daemon=True)
        self.clients = clients
        self.pause = pause
        self.ending = threading.Event()
        self.turn = threading.Lock()  # who holds it finds no question under way
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ending.wait(self.pause):
                with self.turn:
                    for client in self.clients:
                        client.ask()
        except BaseException as error:  # raised by finish()
            self.error = error

    def finish(self) -> int:
        """How many questions were answered, each byte as it should be."""
        self.ending.set()
        self.join(2 * PATIENCE_S)
        if self.error is not None:
            raise self.error
        assert not self.is_alive(), "stuck"
        return sum(client.number for client in self.clients)


_pumps: list[Pump] = []


def start(kind: type[_Client], port: int, count: int, pause: float) -> None:
    _pumps.append(Pump([kind(port) for _ in range(count)], pause))
    _pumps[-1].start()


# The addresses of a client and of its server, and how many bytes it has sent and received.
Counted = tuple[tuple[str, str], int, int]


def hold() -> list[Counted]:
    """Has all of them rest, with no question under way. Pairs with release()."""
    for pump in _pumps:
        pump.turn.acquire()
    return [
        ((name(c.sock.getsockname()), name(c.sock.getpeername())), c.sent, c.received)
        for pump in _pumps
        for c in pump.clients
        if isinstance(c, _Client)
    ]


def release() -> None:
    for pump in _pumps:
        pump.turn.release()


def finish() -> int:
    """Of all that were started; see Pump.finish()."""
    return sum(_pumps.pop().finish() for _ in range(len(_pumps)))
