"""A server and its clients, processes of two users, who have nothing to do with what is tested."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress

from support.traffic import listen, name, pattern, set_nodelay

SIZE = 64
STUCK_MS = 10_000

_clients: list[socket.socket] = []


def serve() -> int:
    """Echoes what comes over any number of connections; the port."""
    listener = listen()
    threading.Thread(target=_echo, args=(listener,), daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def _echo(listener: socket.socket) -> None:
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    servers: dict[int, socket.socket] = {}
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                server, _ = listener.accept()
                server.setblocking(False)
                set_nodelay(server)
                servers[server.fileno()] = server
                poll.register(server, select.EPOLLIN)
                continue
            data = b""
            with suppress(OSError):
                if data := servers[number].recv(65536):
                    servers[number].send(data)  # whoever does not read loses it
            if not data:
                servers.pop(number).close()


def meet(port: int, count: int) -> list[str]:
    """Connects, in place of earlier connections; the addresses of the client ends."""
    while _clients:
        _clients.pop().close()
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port))
        set_nodelay(client)
        _clients.append(client)
    return [name(client.getsockname()) for client in _clients]


def talk(seconds: float) -> float:
    """Round trips a second, over all connections, of bytes that are checked."""
    end, rounds = time.monotonic() + seconds, 0
    began = time.monotonic()
    while time.monotonic() < end:
        for client in _clients:
            rounds += 1
            _round_trip(client, rounds)
    return rounds / (time.monotonic() - began)


def _round_trip(client: socket.socket, number: int) -> None:
    poll = select.poll()
    poll.register(client, select.POLLIN)
    data = pattern(number * SIZE, SIZE)
    client.sendall(data)
    received = b""
    while len(received) < SIZE:
        assert poll.poll(STUCK_MS), "no answer"
        piece = client.recv(SIZE - len(received))
        assert piece, "the end"
        received += piece
    assert received == data
