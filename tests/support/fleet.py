"""Many connections under byte-checked request and answer traffic."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from random import Random

from support.background import Background
from support.emulated import PATIENCE, PAUSE_S
from support.traffic import Stream, listen, pattern, set_nodelay

SIZES = (1, 64, 1000, 4096, 30_000, 100_000)
# Requests sent ahead of reading their answers, so that queues are seldom empty. All of them fit in
# TCP's initial buffers on loopback: more could leave both ends waiting for room.
AHEAD = 4


class Fleet:
    """Clients that send requests, and servers, each blocked in recv() most of the time.

    With `polls` in poll(2), as those are that the default of blocking_readers accelerates.
    """

    def __init__(
        self,
        clients: int,
        *,
        stall_timeout: int = 20,
        reconnect_every: int = 0,
        polls: bool = False,
    ) -> None:
        self.rounds = [0] * clients
        self.connections = 0
        self._stall_timeout = stall_timeout * PATIENCE
        self._reconnect_every = reconnect_every
        self._polls = polls
        self._progress = threading.Condition()
        self._ending = False
        self._sockets: dict[int, socket.socket] = {}
        self._listener = listen()
        self._threads = [Background(self._accept)]
        self._threads += [Background(self._client, number) for number in range(clients)]

    @property
    def errors(self) -> list[str]:
        """What threads met that ended, none of which should have."""
        found = []
        for thread in list(self._threads):
            if thread.error is not None:
                found.append(f"{type(thread.error).__name__}: {thread.error}")
        return found

    def wait(self, more: int, timeout: float = 30.0) -> None:
        """Returns once each client has had `more` rounds, or a thread met an error."""
        timeout *= PATIENCE
        wanted = [count + more for count in self.rounds]

        def reached() -> bool:
            return bool(self.errors) or all(
                now >= then for now, then in zip(self.rounds, wanted, strict=True)
            )

        with self._progress:
            if not self._progress.wait_for(reached, timeout):
                raise TimeoutError(f"rounds {self.rounds}, wanted {wanted}: a client is stuck")

    def clients(self) -> list[socket.socket]:
        return list(self._sockets.values())

    def end(self) -> None:
        """Lets each client finish its request, and all threads end."""
        self._ending = True
        for thread in self._threads[1:]:
            thread.join(self._stall_timeout + 10)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(10)
        self._listener.close()

    def _prepare(self, sock: socket.socket, number: int) -> None:
        set_nodelay(sock)
        if self._polls:
            sock.settimeout(self._stall_timeout)
        else:
            # in the kernel: recv() stays the blocking system call
            limit = struct.pack("ll", self._stall_timeout, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        # a keepalive timer holds a reference to its socket, which retiring has to know
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, number % 2)

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                server, _ = self._listener.accept()
            except OSError:  # end() has shut the listener down
                return
            self._prepare(server, number // 2)
            self._threads.append(Background(self._serve, server))
            number += 1

    def _serve(self, server: socket.socket) -> None:
        stream = Stream()
        with closing(server), self._reporting():
            while data := server.recv(65536):
                stream.feed(data)
                server.sendall(data)

    def _client(self, number: int) -> None:
        random = Random(number)
        with self._reporting():
            while not self._ending:
                with closing(socket.create_connection(self._listener.getsockname())) as client:
                    self.connections += 1
                    self._sockets[number] = client
                    self._prepare(client, number)
                    self._ask(number, client, random)

    def _ask(self, number: int, client: socket.socket, random: Random) -> None:
        stream = Stream()
        count = 0
        while not self._ending:
            sent = stream.position
            for size in random.choices(SIZES, k=AHEAD):
                client.sendall(pattern(sent, size))
                sent += size
            stream.read(client, sent - stream.position)
            count += 1
            with self._progress:
                self.rounds[number] += 1
                self._progress.notify_all()
            if count == self._reconnect_every:
                return
            if PAUSE_S:
                time.sleep(PAUSE_S)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._progress:
                self._progress.notify_all()


@contextmanager
def fleet(clients: int, *, reconnect_every: int = 0, polls: bool = False) -> Iterator[Fleet]:
    """A fleet none of whose connections may fail."""
    made = Fleet(clients, reconnect_every=reconnect_every, polls=polls)
    try:
        yield made
    except BaseException as error:
        # an error of the traffic explains a failed wait better than the wait does
        raise AssertionError(f"{error} (traffic: {made.errors or 'no error'})") from error
    made.end()
    assert not made.errors, made.errors
