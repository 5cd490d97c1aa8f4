"""Listeners that gain nothing by acceleration are left on TCP, until they would."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

from sockredird.datapath.generation import Generation
from sockredird.loader.header import BPF_DIR, record
from sockredird.loader.records import CAUSES, LISTENER
from support.processes import inside
from support.traffic import connect, dial, echo, listen

NAMES = dict(re.findall(r"#define (\w+) (\d+)", (BPF_DIR / "learn" / "learn.h").read_text()))
LIMIT, EVERY = int(NAMES["BALANCE_LIMIT"]), int(NAMES["SAMPLE_EVERY"])
GAP, SECOND = int(NAMES["SAMPLE_GAP_NS"]) / 1e9, int(NAMES["SAMPLE_AFTER_NS"]) / 1e9
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


@inside(timeout=120)
def test_short_connections(cgroup: Path, generation: Generation) -> None:
    with listen() as listener, listen() as other:
        for _ in range(SHORT - 1):
            exchange(listener)
        assert accelerated(generation) == SHORT - 1
        assert whys(generation) == []
        began = time.monotonic()
        exchange(listener)
        assert whys(generation) == ["short_connections"]

        before, number = accelerated(generation), 0
        while accelerated(generation) < before + 3:
            exchange(listener)
            number += 1
        took = time.monotonic() - began
        assert took >= 3 * GAP
        assert number >= 3 * EVERY or took >= SECOND
        samples = accelerated(generation) - before
        assert generation.counters()["declined_learned"] == number - samples
        # another port has its own account
        exchange(other)
        assert accelerated(generation) == before + samples + 1

        # messages enough in a sample make up for it
        before = accelerated(generation)
        for _ in range(EVERY):
            if accelerated(generation) > before:
                break
            exchange(listener, LIMIT)
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
            began = time.monotonic()
            once()
        assert whys(generation) == ["early_data"]
        assert generation.counters()["declined_early_data"] == EARLY
        # one a second is tried, however many there are
        number = 0
        while generation.counters()["declined_early_data"] == EARLY:
            once()
            number += 1
        assert time.monotonic() - began >= SECOND
        assert generation.counters()["declined_learned"] == number - 1


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
