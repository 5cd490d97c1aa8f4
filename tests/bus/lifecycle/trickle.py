"""Byte-checked traffic that leaves the CPUs to the operation under test; runs in an Actor."""

from __future__ import annotations

import socket
import threading
from random import Random

from support.traffic import Connection, Stream, connect, listen, pattern

PAUSE_S = 0.005
SIZES = (1, 64, 1000, 30_000)
AHEAD, PIECE = 60_000, 6_000  # what a slow reader has before it, and takes at a time


class _Talk(threading.Thread):
    """Requests answered in kind; ends with a half-close, and every byte has to be there."""

    def __init__(self, both: Connection, seed: int) -> None:
        super().__init__(daemon=True)
        self.begun = threading.Event()  # a first round is over
        self.ending = threading.Event()
        self.error: BaseException | None = None
        self._both = both
        self._random = Random(seed)
        self.start()

    def run(self) -> None:
        try:
            self._talk(self._both.client, self._both.server)
        except BaseException as error:  # raised in finish()
            self.error = error
            self.begun.set()

    def _end(self, client: socket.socket, server: socket.socket) -> None:
        """What is on the way is read: the sender has ended its stream."""
        assert not server.recv(1)
        server.close()
        assert not client.recv(1)
        client.close()

    def _talk(self, client: socket.socket, server: socket.socket) -> None:
        requests, answers = Stream(), Stream()
        while not self.ending.wait(PAUSE_S):
            size = self._random.choice(SIZES)
            client.sendall(pattern(requests.position, size))
            requests.read(server, size)
            server.sendall(pattern(answers.position, size))
            answers.read(client, size)
            self.begun.set()
        client.shutdown(socket.SHUT_WR)
        self._end(client, server)


class _Slow(_Talk):
    """One end sends, the other reads a little now and then: seldom is nothing unread."""

    def _talk(self, client: socket.socket, server: socket.socket) -> None:
        stream = Stream()
        sent = 0
        while not self.ending.is_set():
            while sent - stream.position < AHEAD:
                client.sendall(pattern(sent, PIECE))
                sent += PIECE
            stream.read(server, PIECE)
            self.begun.set()
            self.ending.wait(PAUSE_S)
        client.shutdown(socket.SHUT_WR)
        stream.read(server, sent - stream.position)
        self._end(client, server)


_talks: list[_Talk] = []
_made = 0


def start(count: int, *, slow: bool = False) -> None:
    global _made
    with listen() as listener:
        for _ in range(count):
            _made += 1
            kind = _Slow if slow else _Talk
            _talks.append(kind(connect(listener), _made))


def renew(*, slow: bool = False) -> None:
    """Ends the oldest conversation and begins another; raises what any has met."""
    start(1, slow=slow)
    assert _talks[-1].begun.wait(20), "stuck at the beginning"
    _finish(_talks.pop(0))
    for talk in _talks:
        if talk.error is not None:
            raise talk.error


def finish() -> None:
    while _talks:
        _finish(_talks.pop())


def _finish(talk: _Talk) -> None:
    talk.ending.set()
    talk.join(20)
    if talk.error is not None:
        raise talk.error
    assert not talk.is_alive(), "stuck"
