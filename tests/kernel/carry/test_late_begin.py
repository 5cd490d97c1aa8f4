"""A direction that begins only after its reader has read by an ordinary recv(2).

So it is where fentry programs see other calls; here nothing but the setting is needed. What the
calls themselves do is tried in guests: tests/vm/guest/typed/test_detect.py.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockredird.datapath import detectors
from sockredird.datapath.generation import Generation
from sockredird.loader.header import BPF_DIR
from support.daemon.users import DAEMON
from support.edited import Edit, generation_of
from support.leaving import have_all_leave
from support.processes import inside
from support.traffic import Connection, connect, connection, echo, listen

HEADER = (BPF_DIR / "carry" / "begin.h").read_text()
READS_SHOWN = int(re.findall(r"#define READS_SHOWN (\d+)", HEADER)[0])
READERS = (BPF_DIR / "learn" / "readers.h").read_text()
CONNECTIONS_SHOWN = int(re.findall(r"#define CONNECTIONS_SHOWN (\d+)", READERS)[0])


@pytest.fixture(autouse=True)
def begins_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can be attached here."""
    monkeypatch.setattr(detectors, "LATE", frozenset())


def redirected(generation: Generation) -> int:
    return generation.counters()["redirected_messages"]


@contextmanager
def counted(generation: Generation, messages: int) -> Iterator[None]:
    before = redirected(generation)
    yield
    assert redirected(generation) - before == messages


def send(sender: socket.socket, reader: socket.socket) -> None:
    sender.sendall(b"data")
    assert reader.recv(100) == b"data"


def send_both_ways(both: Connection) -> None:
    send(both.client, both.server)
    send(both.server, both.client)


def show(both: Connection) -> None:
    """The programs read as many messages as it takes, in both directions."""
    for _ in range(READS_SHOWN):
        send_both_ways(both)


@inside()
def test_the_first_messages_of_each_direction(cgroup: Path, generation: Generation) -> None:
    """Go by TCP on the first connection to a listener, and are redirected on later ones."""
    with listen() as listener:
        first = connect(listener)
        with counted(generation, 0):
            show(first)
        with counted(generation, 2):
            send_both_ways(first)
        second = connect(listener)
        with counted(generation, 2):
            send_both_ways(second)
        first.close()
        second.close()


@inside()
def test_nothing_is_redirected_before_the_first_is_read(
    cgroup: Path, generation: Generation
) -> None:
    with connection() as both, counted(generation, 0):
        for _ in range(2 * READS_SHOWN):
            both.client.sendall(b"data")
        assert both.server.recv(1000) == b"data" * 2 * READS_SHOWN


@inside()
def test_a_direction_that_only_reads_says_nothing_of_the_other(
    cgroup: Path, generation: Generation
) -> None:
    with listen() as listener:
        first = connect(listener)
        for _ in range(READS_SHOWN + 1):
            send(first.client, first.server)
        second = connect(listener)
        with counted(generation, 1):
            send_both_ways(second)
        first.close()
        second.close()


@inside()
def test_directions_that_are_too_short_to_begin(cgroup: Path, generation: Generation) -> None:
    """One request and one answer: that both were read shows as each of so many connections ends."""
    with listen() as listener:
        for number in range(CONNECTIONS_SHOWN + 1):
            both = connect(listener)
            with counted(generation, 2 if number == CONNECTIONS_SHOWN else 0):
                send_both_ways(both)
            both.client.close()
            assert both.server.recv(1) == b""
            both.server.close()


@inside()
def test_what_is_read_after_the_pair_has_left_shows_nothing(
    cgroup: Path, generation: Generation
) -> None:
    """No fentry program sees how."""
    with listen() as listener:
        both = connect(listener)
        both.client.sendall(b"data")
        have_all_leave(generation)
        assert generation.members.retire(10, lambda walked: walked.entries == 0)
        assert both.server.recv(100) == b"data"
        both.client.close()
        assert both.server.recv(1) == b""
        both.server.close()
        other = connect(listener)
        with counted(generation, 0):
            send(other.client, other.server)
        other.close()


@inside()
def test_the_clients_of_another_user(cgroup: Path, generation: Generation) -> None:
    """Another program may read at the client's end, and not at the server's."""

    def connected_as(user: int) -> Connection:
        os.seteuid(user)
        try:
            return connect(listener)
        finally:
            os.seteuid(0)

    with listen() as listener:
        first = connect(listener)
        show(first)
        echo(first, 1)
        other = connected_as(DAEMON)
        with counted(generation, 1):
            send_both_ways(other)
        first.close()
        other.close()


RE_CHECK = "	load_barrier(st);\n	if (changed_since(st, &now))\n		return 0;\n"
# What a detector does on another processor, just when it hurts.
REFUSED = "	WRITE_ONCE(st->guard_cause, (__u32)CAUSE_SPLICE);\n	announce_change(st);\n"


@pytest.mark.parametrize("without", [False, True], ids=["with", "without"])
@inside()
def test_a_call_that_is_refused_may_have_read(
    cgroup: Path, bpffs: Path, tmp_path: Path, without: bool
) -> None:
    """Between the look at the guards and that at what was read; nothing is redirected then."""
    edit: Edit = ("carry/redirect.c", RE_CHECK, REFUSED + ("" if without else RE_CHECK))
    made = generation_of([edit], bpffs, cgroup, tmp_path, learn=False)
    with made as generation, connection() as both:
        for _ in range(READS_SHOWN):
            send(both.client, both.server)
        with counted(generation, int(without)):
            send(both.client, both.server)
