"""Byte-checked traffic that goes on while the test does something to the daemon.

These functions run in an Actor; the connections are globals of this module there.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from support.emulated import PATIENCE
from support.traffic import Stream, connect, echo, listen, name, pattern, wait_readable

# ping-pong of small messages, and streams with up to OUTSTANDING chunks on the way
SIZES = (64, 1, 4096, 700, 16384, 33)
OUTSTANDING = 8
ADVANCE_TIMEOUT_S = 20.0 * PATIENCE


@dataclass
class _Conversation:
    client: socket.socket
    server: socket.socket
    pipelined: bool
    pause: float
    rounds: int = 0
    goal: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    ending: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for function in (self.ask, self.answer):
            # daemon threads, so that stuck ones end with us
            self.threads.append(threading.Thread(target=self.run, args=[function], daemon=True))
            self.threads[-1].start()

    def run(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # raised in the thread that waits for this one
            self.errors.append(error)
            self.reached.set()

    def ask(self) -> None:
        """Sends, and checks what comes back, until the load ends; then to the last byte."""
        answers = Stream()
        sent = 0
        waiting: list[int] = []
        while not self.ending.is_set():
            size = SIZES[self.rounds % len(SIZES)]
            self.client.sendall(pattern(sent, size))
            sent += size
            waiting.append(size)
            if len(waiting) >= (OUTSTANDING if self.pipelined else 1):
                answers.read(self.client, waiting.pop(0))
            self.rounds += 1
            if self.rounds >= self.goal:
                self.reached.set()
            if self.pause:
                self.ending.wait(self.pause)
        self.client.shutdown(socket.SHUT_WR)
        while data := self.receive_last():
            answers.feed(data)
        assert answers.position == sent, f"{answers.position} of {sent} bytes came back"

    def receive_last(self) -> bytes:
        # a recv() blocked on an accelerated connection ends in EAGAIN when our FIN is acknowledged
        wait_readable(self.client)
        return self.client.recv(1 << 16)

    def answer(self) -> None:
        requests = Stream()
        while data := self.server.recv(1 << 16):
            requests.feed(data)
            self.server.sendall(data)
        self.server.shutdown(socket.SHUT_WR)

    def advance(self) -> None:
        """Returns when the goal is reached."""
        while self.rounds < self.goal:
            if not self.reached.wait(ADVANCE_TIMEOUT_S):
                raise TimeoutError(f"stuck after {self.rounds} rounds")
            if self.errors:
                raise self.errors[0]
            self.reached.clear()

    def finish(self) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join(ADVANCE_TIMEOUT_S)
            if thread.is_alive():
                raise TimeoutError("stuck before the last byte")
        if self.errors:
            raise self.errors[0]
        self.client.close()
        self.server.close()


_conversations: list[_Conversation] = []


def start(count: int, pause: float = 0) -> None:
    """Adds `count` conversations, every second one pipelined, that pause after each round."""
    with listen() as listener:
        for number in range(count):
            both = connect(listener)
            talk = _Conversation(both.client, both.server, number % 2 == 1, pause)
            talk.start()
            _conversations.append(talk)


def clients() -> list[str]:
    """Addresses of the conversations' clients, as sockredirctl writes them."""
    return [name(talk.client.getsockname()) for talk in _conversations]


def addresses() -> list[tuple[str, str]]:
    """Of both ends of each conversation, as sockredirctl takes them."""
    return [
        (name(talk.client.getsockname()), name(talk.client.getpeername()))
        for talk in _conversations
    ]


def advance(rounds: int) -> None:
    """Returns when each conversation has made that many more rounds; raises if one failed."""
    for talk in _conversations:
        talk.goal = talk.rounds + rounds
    for talk in _conversations:
        talk.advance()


def finish() -> None:
    """Ends all conversations, each of which checks that no byte is missing."""
    while _conversations:
        _conversations.pop().finish()


def renew(count: int) -> None:
    """Ends the oldest conversations and begins as many new ones like them."""
    pause = _conversations[0].pause
    for talk in _conversations[:count]:
        talk.ending.set()
    for _ in range(count):
        _conversations.pop(0).finish()
    start(count, pause)


def echo_once(rounds: int, size: int, port: int = 0) -> int:
    """A connection of its own for that many round trips; the listening port."""
    with listen(port=port) as listener:
        both = connect(listener)
        chosen: int = listener.getsockname()[1]
    echo(both, rounds, size)
    both.close()
    return chosen
