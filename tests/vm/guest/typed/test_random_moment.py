"""A program begins to splice, or to receive with flags, at a random moment, while both ends send.

Each is the first connection to its listener. What is not as on TCP is one of the differences that
docs/semantics.md explains, and how often it is met is printed. Nothing hangs, and but for splice(2)
no byte is lost or comes out of order.
"""

from __future__ import annotations

import os
import random
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest
from ftrace import NEEDS_FENTRY
from serving import serving
from shell import sh
from status import BUSCTL, counters

CONNECTIONS = 250  # of each kind
MESSAGES = 80
LONGEST = 200
WAITED_FOR = 64  # bytes
PAUSE_S = 0.003
PATIENCE_S = 60.0
STREAM = bytes(range(1, 256)) * (MESSAGES * LONGEST // 255 + 1)  # no byte of it is 0

pytestmark = [NEEDS_FENTRY, pytest.mark.usefixtures("nothing_learned")]

Receive = Callable[[socket.socket, int], str]


def readable(sock: socket.socket, events: int = select.POLLIN) -> int:
    waiter = select.poll()
    waiter.register(sock, events)
    found = waiter.poll(PATIENCE_S * 1000)
    assert found, "nothing comes"
    return found[0][1]


def expect(data: bytes, position: int) -> None:
    assert data == STREAM[position : position + len(data)], f"wrong data at {position}"


class Overtaken(Exception):
    """What came by TCP is read before what was redirected."""


class Spliced:
    """Each method returns how many bytes it has taken, and notes what is not as on TCP."""

    def __init__(self, seen: Counter[str]) -> None:
        self.seen = seen
        self.pipe = os.pipe()
        os.set_blocking(self.pipe[0], False)

    def take(self, sock: socket.socket, position: int) -> int:
        sock.setblocking(False)
        readable(sock)
        try:
            moved: int = os.splice(sock.fileno(), self.pipe[1], 4096)  # type: ignore[attr-defined]
        except BlockingIOError:
            return -1  # it polls again: either a message is under way, or the reset is
        if moved and os.read(self.pipe[0], moved) != STREAM[position : position + moved]:
            raise Overtaken
        return moved

    def close(self) -> None:
        for end in self.pipe:
            os.close(end)


class WaitedFor(Spliced):
    def take(self, sock: socket.socket, position: int) -> int:
        readable(sock)
        sock.setblocking(True)
        data = sock.recv(WAITED_FOR, socket.MSG_WAITALL)
        expect(data, position)
        if data and len(data) < WAITED_FOR and not at_the_end(sock):
            self.seen["short"] += 1
        return len(data)


class Truncated(Spliced):
    def take(self, sock: socket.socket, position: int) -> int:
        readable(sock)
        sock.setblocking(False)
        room = bytearray(4096)
        size = sock.recv_into(room, 0, socket.MSG_TRUNC)
        if any(room):
            self.seen["copied"] += 1
        return size


class Urgent(Spliced):
    """The program asks for urgent data. There is none, so TCP answers EINVAL."""

    def take(self, sock: socket.socket, position: int) -> int:
        readable(sock)
        sock.setblocking(False)
        try:
            sock.recv(1, socket.MSG_OOB)
            self.seen["urgent"] += 1
            return 1
        except BlockingIOError:
            self.seen["urgent"] += 1
        except OSError:
            pass
        data = sock.recv(4096)
        expect(data, position)
        return len(data)


def at_the_end(sock: socket.socket) -> bool:
    """Whether nothing more comes: what was short was all."""
    waiter = select.poll()
    waiter.register(sock, select.POLLRDHUP)
    return bool(waiter.poll(0))


def receive(sock: socket.socket, kind: Spliced) -> int:
    """Reads so many times with recv(), then in that way, to the end; the bytes."""
    position = 0
    for _ in range(random.randrange(MESSAGES)):
        readable(sock)
        data = sock.recv(4096)
        if not data:
            return position
        expect(data, position)
        position += len(data)
        sock.sendall(b"answer")
    while True:
        taken = kind.take(sock, position)
        if taken == 0:
            return position
        if taken > 0:
            position += taken
            with suppress(BlockingIOError):
                sock.send(b"answer")


def send(sock: socket.socket, pause: random.Random) -> int:
    """The stream in messages of random sizes, some of them after a pause; the bytes."""
    position = 0
    for _ in range(MESSAGES):
        size = pause.randrange(1, LONGEST)
        sock.sendall(STREAM[position : position + size])
        position += size
        if pause.random() < 0.3:
            threading.Event().wait(pause.random() * PAUSE_S)
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:  # it was reset meanwhile
        raise ConnectionResetError(error.errno, "reset") from error
    return position


def exchange(kind: type[Spliced], seen: Counter[str]) -> None:
    received: list[int] = []

    def serve(server: socket.socket) -> None:
        server.settimeout(PATIENCE_S)  # it polls
        way = kind(seen)
        try:
            received.append(receive(server, way))
        except ConnectionResetError:
            seen["reset"] += 1
        except Overtaken:
            seen["overtaken"] += 1
        finally:
            way.close()

    sent = -1

    def converse(port: int) -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
            sent = send(client, random.Random())
            while client.recv(4096):
                pass
        return sent

    with serving(serve) as port, suppress(ConnectionError):
        sent = converse(port)
    # a sender may learn of a reset where the reader has everything
    if received and sent not in (-1, received[0]):
        seen["cut short"] += 1


@pytest.mark.parametrize("kind", [Spliced, WaitedFor, Truncated, Urgent])
def test_at_a_random_moment(kind: type[Spliced], capsys: pytest.CaptureFixture[str]) -> None:
    seen: Counter[str] = Counter()
    before = counters()
    for _ in range(CONNECTIONS):
        exchange(kind, seen)
    after = counters()
    redirected = after["redirected_messages"] - before["redirected_messages"]
    with capsys.disabled():
        print(f"{kind.__name__}: {dict(seen)} of {CONNECTIONS}, {redirected} messages redirected")
    assert redirected > CONNECTIONS
    made = after["accelerated_connections"] - before["accelerated_connections"]
    assert made > 0.9 * CONNECTIONS


@pytest.mark.parametrize("kind", [Spliced, WaitedFor, Truncated, Urgent])
def test_the_same_on_tcp(kind: type[Spliced]) -> None:
    """The oracle: nothing of what the other test counts is seen there."""
    seen: Counter[str] = Counter()
    sh(BUSCTL.format("call", "Disable"))
    try:
        for _ in range(CONNECTIONS // 5):
            exchange(kind, seen)
    finally:
        sh(BUSCTL.format("call", "Enable"))
    assert not seen
