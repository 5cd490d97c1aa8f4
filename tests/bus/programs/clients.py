"""Clients that poll, and compare every byte of each answer; their functions run in an Actor."""

from __future__ import annotations

import select
import socket
import threading
import time

from support.traffic import pattern

PATIENCE_S = 20.0
SIZES = (1, 64, 700, 5000)
PAUSE_S = 0.001


class _Client:
    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
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
        data = self._sock.recv(65536)
        assert data, "the server has closed the connection"
        self._rest += data

    def _value(self) -> bytes:
        self.number += 1
        return pattern(self.number * 4096, SIZES[self.number % len(SIZES)])


class Redis(_Client):
    def ask(self) -> None:
        value = self._value()
        key = b"key-%d" % self._sock.getsockname()[1]
        self._send(b"SET", key, value)
        self._expect(b"+OK\r\n")
        self._send(b"GET", key)
        self._expect(b"$%d\r\n%b\r\n" % (len(value), value))

    def _send(self, *words: bytes) -> None:
        parts = (b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        self._sock.sendall(b"*%d\r\n" % len(words) + b"".join(parts))


class Memcached(_Client):
    def ask(self) -> None:
        value = self._value()
        key = b"key-%d" % self._sock.getsockname()[1]
        self._sock.sendall(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value))
        self._expect(b"STORED\r\n")
        self._sock.sendall(b"get %b\r\n" % key)
        self._expect(b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(value), value))


PAGE = pattern(0, 3000)


class Http(_Client):
    def ask(self) -> None:
        self.number += 1
        self._sock.sendall(b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = self._until(b"\r\n\r\n").lower()
        assert head.startswith(b"http/1.1 200 "), head
        assert b"content-length: %d\r\n" % len(PAGE) in head, head
        self._expect(PAGE)


class _Pump(threading.Thread):
    """All clients in turn, until it is told to end."""

    def __init__(self, clients: list[_Client]) -> None:
        super().__init__(daemon=True)
        self.clients = clients
        self.ending = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                for client in self.clients:
                    client.ask()
                time.sleep(PAUSE_S)
        except BaseException as error:  # raised by finish()
            self.error = error


_pumps: list[_Pump] = []


def start(kind: type[_Client], port: int, count: int) -> None:
    _pumps.append(_Pump([kind(port) for _ in range(count)]))
    _pumps[-1].start()


def finish() -> int:
    """How many questions were answered, each byte as it should be."""
    asked = 0
    while _pumps:
        pump = _pumps.pop()
        pump.ending.set()
        pump.join(2 * PATIENCE_S)
        if pump.error is not None:
            raise pump.error
        assert not pump.is_alive(), "stuck"
        asked += sum(client.number for client in pump.clients)
    return asked
