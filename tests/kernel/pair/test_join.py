"""Joining live connections, look by look, with no daemon."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from sockredird.datapath.generation import Generation
from sockredird.datapath.join import Joiner
from support.kernel_facts import FIONREAD_OMITS_TCP
from support.processes import inside
from support.traffic import Connection, Stream, listen, pattern, set_nodelay

FIRST, MESSAGE = 3000, 100
LONGER_S = 0.12  # than PASSES_BORDER_MS in bpf/leave/walk.c


class Talk:
    """A connection that was declined, since its client sent before it was accepted."""

    def __init__(self) -> None:
        with listen() as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
            self.client = socket.create_connection(listener.getsockname())
            self.client.sendall(pattern(0, FIRST))
            self.server, _ = listener.accept()
        self.request, self.answer, self.sent = Stream(), Stream(), FIRST
        for end in (self.client, self.server):
            set_nodelay(end)
            end.settimeout(20.0)  # O_NONBLOCK, and poll()
        self.request.read(self.server, FIRST)

    def send(self) -> None:
        self.client.sendall(pattern(self.sent, MESSAGE))
        self.sent += MESSAGE

    def read(self) -> None:
        self.request.read(self.server, self.sent - self.request.position)

    def reply(self) -> None:
        self.server.sendall(pattern(self.answer.position, MESSAGE))
        self.answer.read(self.client, MESSAGE)

    def talk(self, rounds: int = 3) -> None:
        for _ in range(rounds):
            self.send()
            self.read()
            self.reply()

    @property
    def both(self) -> Connection:
        return Connection(self.client, self.server)


def joined(generation: Generation) -> Talk:
    talk, joiner = Talk(), Joiner()
    assert generation.counters()["declined_early_data"] == 1
    joiner.look(generation, "loopback")
    talk.talk()
    assert joiner.look(generation, "loopback").joined == 1
    return talk


@inside()
def test_a_walk_before_an_end_has_sent(cgroup: Path, generation: Generation) -> None:
    """Such an end does not know its peer yet, which is no reason to leave."""
    talk = joined(generation)
    for _ in range(3):
        talk.send()  # by TCP, and unread as the walk comes
        walked = generation.members.walk()
        assert (walked.entries, walked.leaving) == (2, 0)
        talk.read()
    assert generation.counters()["redirected_messages"] > 0
    before = generation.counters()["redirected_messages"]
    talk.talk(20)
    assert generation.counters()["redirected_messages"] > before + 30
    assert generation.counters()["retired_half_closed"] == 0
    talk.both.close()


@inside()
def test_idle_ones_are_not_joined(cgroup: Path, generation: Generation) -> None:
    talk, joiner = Talk(), Joiner()
    for _ in range(3):
        assert joiner.look(generation, "loopback").joined == 0
    assert joiner.left == {}
    talk.both.close()


@inside()
def test_a_reader_that_is_behind_and_one_that_stops(cgroup: Path, generation: Generation) -> None:
    """Where FIONREAD leaves out TCP's data, the second may wait for it for ever, and is let go."""
    talk = joined(generation)
    talk.send()
    for _ in range(5):
        talk.send()
        talk.request.read(talk.server, MESSAGE)  # one message stays unread
        assert generation.members.walk().leaving == 0
        time.sleep(LONGER_S)
    generation.members.walk()
    time.sleep(LONGER_S)
    walked = generation.members.walk()
    assert bool(walked.leaving) == FIONREAD_OMITS_TCP
    talk.read()
    talk.both.close()
