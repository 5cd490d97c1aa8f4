"""Listeners that gain nothing by acceleration are left on TCP, until they would."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sockredird.datapath.generation import Generation
from sockredird.datapath.join import Joiner
from sockredird.loader.header import BPF_DIR, record
from sockredird.loader.records import CAUSES, LISTENER
from support.daemon.users import DAEMON, NOBODY
from support.processes import inside
from support.traffic import Connection, connect, dial, echo, listen

NAMES = dict(re.findall(r"#define (\w+) (\d+)", (BPF_DIR / "learn" / "learn.h").read_text()))
LIMIT = int(NAMES["BALANCE_LIMIT"])
JOINED = LIMIT // int(NAMES["JOINED_SAVES"])  # connections that make up for it
SHORT = LIMIT // (int(NAMES["PAIRING_COST"]) - 2)  # connections of two messages
EARLY = LIMIT // int(NAMES["EARLY_DATA_COST"])
TCP_DEFER_ACCEPT = 9


def whys(generation: Generation) -> list[str]:
    entries = [record("learned_entry").unpack(entry) for _key, entry in generation.learned()]
    return [CAUSES[entry.cause] for entry in entries]


def accelerated(generation: Generation) -> int:
    return generation.counters()["accelerated_connections"]


def exchange(listener: socket.socket, rounds: int = 1) -> None:
    both = connect(listener)
    echo(both, rounds)
    both.client.close()
    while both.server.recv(1):
        pass
    both.server.close()


def joined(generation: Generation) -> int:
    return generation.counters()["joined_connections"]


def join(generation: Generation, joiner: Joiner, both: Connection) -> None:
    """Has it carry messages between two looks."""
    for end in (both.client, both.server):
        end.settimeout(20.0)  # O_NONBLOCK, and poll()
    echo(both, 1)
    joiner.look(generation, "loopback")
    echo(both, 3)
    joiner.look(generation, "loopback")


@inside(timeout=120)
def test_short_connections(cgroup: Path, generation: Generation) -> None:
    with listen() as listener, listen() as other:
        for _ in range(SHORT - 1):
            exchange(listener)
        assert accelerated(generation) == SHORT - 1
        assert whys(generation) == []
        exchange(listener)
        assert whys(generation) == ["short_connections"]
        for _ in range(100):
            exchange(listener)
        assert accelerated(generation) == SHORT
        assert generation.counters()["declined_learned"] == 100
        # another port has its own account
        exchange(other)
        assert accelerated(generation) == SHORT + 1


@inside(timeout=120)
def test_connections_that_join_make_up_for_it(cgroup: Path, generation: Generation) -> None:
    joiner = Joiner()
    with listen() as listener:
        for _ in range(SHORT):
            exchange(listener)
        kept = []
        for number in range(JOINED):
            assert whys(generation) == ["short_connections"]
            kept.append(connect(listener))
            assert joined(generation) == number
            join(generation, joiner, kept[-1])
            assert joined(generation) == number + 1
        assert whys(generation) == []
        before = accelerated(generation)
        for _ in range(10):
            exchange(listener)
        assert accelerated(generation) == before + 10


@inside(timeout=120)
def test_long_connections_are_not_learned(cgroup: Path, generation: Generation) -> None:
    """Every so many short ones, one that makes up for them."""
    with listen() as listener:
        for number in range(2 * SHORT):
            exchange(listener, 1 if number % 10 else 16)
        assert accelerated(generation) == 2 * SHORT
        assert whys(generation) == []


@contextmanager
def client_of(uid: int) -> Iterator[None]:
    """Sockets that are made inside the with block are that user's."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def exchanges(listener: socket.socket, count: int, uid: int) -> None:
    """So many short connections of that user's clients."""
    with client_of(uid):
        for _ in range(count):
            exchange(listener)


@inside(timeout=120)
def test_one_user_does_not_decide_for_another(cgroup: Path, generation: Generation) -> None:
    """What his clients cost counts up to a limit, which the gain of others makes up for."""
    with listen() as listener:
        exchanges(listener, 3 * SHORT, NOBODY)
        assert whys(generation) == ["short_connections"]
        joiner = Joiner()
        with client_of(DAEMON):
            kept = [connect(listener) for _ in range(JOINED)]
        for both in kept:
            join(generation, joiner, both)
        assert joined(generation) == JOINED
        assert whys(generation) == []
        exchanges(listener, 2 * SHORT, NOBODY)
        assert whys(generation) == []
        exchanges(listener, 2 * SHORT, DAEMON)
        assert whys(generation) == ["short_connections"]


@inside(timeout=120)
def test_a_connection_that_goes_on_makes_up_for_it(cgroup: Path, generation: Generation) -> None:
    """Its end is not waited for; but it counts once, and what two users lose is more."""
    with listen() as listener:
        both = connect(listener)
        echo(both, LIMIT)
        exchanges(listener, 2 * SHORT, NOBODY)
        assert whys(generation) == ["short_connections"]
        generation.members.walk()
        assert whys(generation) == []
        exchanges(listener, 2 * SHORT, NOBODY)
        assert whys(generation) == []
        exchanges(listener, 2 * SHORT, DAEMON)
        assert whys(generation) == ["short_connections"]
        echo(both, LIMIT)
        generation.members.walk()
        assert whys(generation) == ["short_connections"]


@inside(timeout=120)
def test_open_connections_are_not_learned(cgroup: Path, generation: Generation) -> None:
    """Only what has ended is known to have been short."""
    with listen() as listener:
        kept = [connect(listener) for _ in range(400)]
        for both in kept:
            echo(both, 1)
        assert accelerated(generation) == 400
        assert whys(generation) == []


@inside(timeout=120)
def test_early_data(cgroup: Path, generation: Generation) -> None:
    with listen() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT, 30)

        def once() -> None:
            client = dial(listener)
            client.sendall(b"x")
            listener.accept()[0].close()
            client.close()

        for _ in range(EARLY):
            assert whys(generation) == []
            once()
        assert whys(generation) == ["early_data"]
        assert generation.counters()["declined_early_data"] == EARLY
        for _ in range(10):
            once()
        assert generation.counters()["declined_early_data"] == EARLY
        assert generation.counters()["declined_learned"] == 10


@inside(timeout=120)
def test_forgetting_begins_again(cgroup: Path, generation: Generation) -> None:
    with listen() as listener:
        for _ in range(SHORT):
            exchange(listener)
        ((key, _),) = generation.learned()
        assert LISTENER.unpack(key).port == listener.getsockname()[1]
        generation.remove_learned(key)
        before = accelerated(generation)
        for _ in range(SHORT - 1):
            exchange(listener)
        assert accelerated(generation) == before + SHORT - 1
        assert whys(generation) == []
