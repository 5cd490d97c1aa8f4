"""Byte-checked traffic that leaves the CPUs to the operation under test; runs in an Actor."""

from __future__ import annotations

import socket
import threading
from random import Random

from support.traffic import Connection, Stream, connect, listen, pattern

PAUSE_S = 0.005
SIZES = (1, 64, 1000, 30_000)


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
        assert not server.recv(1)
        server.close()
        assert not client.recv(1)
        client.close()


_talks: list[_Talk] = []
_made = 0


def start(count: int) -> None:
    global _made
    with listen() as listener:
        for _ in range(count):
            _made += 1
            _talks.append(_Talk(connect(listener), _made))


def renew() -> None:
    """Ends the oldest conversation and begins another; raises what any has met."""
    start(1)
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
