"""Byte-checked traffic of programs that poll; its functions run in an Actor.

Half of the connections echo small messages, one at a time; the others keep a stream under way in
both directions. All descriptors are O_NONBLOCK and watched by one edge-triggered epoll, whose
reader trusts a short read.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from support.emulated import PATIENCE
from support.traffic import Connection, Stream, connect, listen, name, pattern

READ, STREAMED = 4096, 64 << 10
SIZES = (64, 1, 900, 3000, 33)


@dataclass
class _End:
    sock: socket.socket
    window: int  # bytes that may be on the way
    sent: int = 0
    peer: _End | None = None
    got: Stream = field(default_factory=Stream)
    outgoing: deque[bytes] = field(default_factory=deque)
    round: int = 0

    def read(self) -> None:
        while True:
            try:
                data = self.sock.recv(READ)
            except BlockingIOError:
                return
            assert data, "the connection ended"
            self.got.feed(data)
            if len(data) < READ:
                return  # a short read: the next edge tells of more, epoll(7)

    def write(self, ending: bool) -> None:
        assert self.peer is not None
        while self.outgoing or (not ending and self.sent - self.peer.got.position < self.window):
            if not self.outgoing:
                size = SIZES[self.round % len(SIZES)] if self.window == 1 else 5000
                self.outgoing.append(pattern(self.sent, size))
                self.sent += size
                self.round += 1
            try:
                done = self.sock.send(self.outgoing[0])
            except BlockingIOError:
                return
            rest = self.outgoing.popleft()[done:]
            if rest:
                self.outgoing.appendleft(rest)


class _Traffic(threading.Thread):
    def __init__(
        self, connections: Sequence[Connection], sent: int, streams: bool, pause: float
    ) -> None:
        """Each client has sent so many bytes already, which its server has read.

        `pause`, in seconds, leaves the CPUs to others between two rounds.
        """
        super().__init__(daemon=True)
        self.pause = pause
        self.ends: dict[int, _End] = {}
        self.error: BaseException | None = None
        self.ending = threading.Event()
        self.going = threading.Event()
        self.going.set()
        self.poll = select.epoll()
        for number, both in enumerate(connections):
            window = STREAMED if streams and number % 2 else 1
            client, server = _End(both.client, window, sent), _End(both.server, window)
            client.peer, server.peer = server, client
            server.got.position = sent
            for end in (client, server):
                end.sock.setblocking(False)
                self.ends[end.sock.fileno()] = end
                self.poll.register(end.sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def run(self) -> None:
        try:
            while not self.done():
                self.going.wait()
                self.ending.wait(self.pause)
                for number, _ in self.poll.poll(0.05):
                    self.ends[number].read()
                for end in self.ends.values():
                    end.write(self.ending.is_set())
        except BaseException as error:  # raised again by finish()
            self.error = error

    def done(self) -> bool:
        return self.ending.is_set() and all(
            end.peer is not None and end.peer.got.position == end.sent for end in self.ends.values()
        )


_traffic: list[_Traffic] = []


def start(count: int, *, streams: bool = True, pause: float = 0) -> None:
    with listen() as listener:
        carry([connect(listener) for _ in range(count)], streams=streams, pause=pause)


def carry(
    connections: Sequence[Connection], sent: int = 0, *, streams: bool = True, pause: float = 0
) -> None:
    """As start(), on connections that are there already; see _Traffic."""
    _traffic.append(_Traffic(connections, sent, streams, pause))
    _traffic[-1].start()


def addresses() -> list[tuple[str, str]]:
    """Of both ends of each connection, as sockredirctl takes them."""
    return [
        (name(end.sock.getsockname()), name(end.sock.getpeername()))
        for traffic in _traffic
        for end in traffic.ends.values()
    ]


def pause() -> None:
    """Nothing is sent or read from here on."""
    for traffic in _traffic:
        traffic.going.clear()


def resume() -> None:
    for traffic in _traffic:
        traffic.going.set()


def rounds() -> int:
    """Messages sent so far, by all."""
    return sum(end.round for traffic in _traffic for end in traffic.ends.values())


def finish() -> None:
    """Ends the traffic; raises unless every byte has arrived in its place."""
    while _traffic:
        traffic = _traffic.pop()
        traffic.ending.set()
        traffic.join(30.0 * PATIENCE)
        if traffic.error is not None:
            raise traffic.error
        assert not traffic.is_alive(), "stuck: bytes are missing, or nobody was woken"
        for end in traffic.ends.values():
            end.sock.close()
