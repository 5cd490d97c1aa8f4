"""Programs that talk: redis, HTTP, and one-shot connections. Clients count what they send and get.

These functions run in an Actor inside the cgroup in scope.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

from support.traffic import free_port, listen


@dataclass(frozen=True, order=True)
class Count:
    """What a client counted, by both addresses: a client's port may have two connections."""

    client: str
    server: str
    sent: int
    received: int


@dataclass
class Counted:
    """A socket that knows what went through it."""

    sock: socket.socket
    sent: int = 0
    received: int = 0

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)
        self.sent += len(data)

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (chunk := self.sock.recv(size - len(data))):
            data += chunk
        self.received += len(data)
        return bytes(data)

    def read_line(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\r\n"):
            line += self.read(1)
        return bytes(line)

    @property
    def count(self) -> Count:
        ends = self.sock.getsockname(), self.sock.getpeername()
        client, server = (f"{host}:{port}" for host, port in ends)
        return Count(client, server, self.sent, self.received)


class _Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"p" * int(self.path.strip("/"))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


_held: list[Counted] = []
_ports: dict[str, int] = {}
_redis: list[subprocess.Popen[bytes]] = []


def serve() -> dict[str, int]:
    """Starts redis, an HTTP server and two echo servers; their ports."""
    port = free_port()
    # it saves nothing
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", "/"]
    _redis.append(subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL))
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    pages = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    pages.daemon_threads = True
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    _ports.update(redis=port, http=pages.server_port)
    for name in ("echo", "other echo"):
        echo = listen()
        threading.Thread(target=_echo, args=[echo], daemon=True).start()
        _ports[name] = echo.getsockname()[1]
    return dict(_ports)


def _echo(listener: socket.socket) -> None:
    while True:
        sock, _ = listener.accept()
        with closing(sock):
            while data := sock.recv(65536):
                sock.sendall(data)


def _dial(service: str) -> Counted:
    return Counted(socket.create_connection(("127.0.0.1", _ports[service])))


def _set_and_get(one: Counted, random: Random) -> None:
    value = b"v" * random.choice((1, 100, 4096, 70_000))
    one.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%s\r\n" % (len(value), value))
    assert one.read_line() == b"+OK\r\n"
    one.send(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")
    size = int(one.read_line()[1:])
    assert one.read(size + 2) == value + b"\r\n"


def _get_page(one: Counted, random: Random) -> None:
    one.send(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % random.choice((0, 10, 5000, 200_000)))
    size = 0
    while (line := one.read_line()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            size = int(line.split(b":")[1])
    one.read(size)


def talk(redis: int, http: int, rounds: int) -> list[Count]:
    """So many connections of each kind, all used and left open; counts of all that are open."""
    for number in range(redis + http):
        random = Random(number)
        one = _dial("redis" if number < redis else "http")
        for _ in range(rounds):
            (_set_and_get if number < redis else _get_page)(one, random)
        _held.append(one)
    return [one.count for one in _held]


def storm(connections: int, service: str = "echo") -> list[Count]:
    """One request and one answer on a connection of its own, one after the other."""
    counts = []
    for number in range(connections):
        one = _dial(service)
        one.send(b"x" * (number % 50 + 1))
        one.read(number % 50 + 1)
        counts.append(one.count)
        one.sock.close()
    return counts


def hang_up() -> None:
    while _held:
        _held.pop().sock.close()


def stop() -> None:
    while _redis:
        process = _redis.pop()
        process.terminate()
        process.wait()
