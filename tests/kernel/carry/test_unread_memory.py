"""What nobody reads costs the kernel about what it costs with TCP, per direction and in total.

A redirected message is a struct sk_msg of 1 KiB that is charged to nobody, whatever its payload, so
small messages are what hurts: see the textbook.
"""

from __future__ import annotations

import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from sockredird.datapath.generation import Generation
from sockredird.kernel import libbpf
from sockredird.kernel.ringbuf import RingBuffers
from sockredird.loader.header import record
from sockredird.loader.records import REQUEST_WALK
from support import memory, processes, textbook
from support.datapath import settings_of
from support.emulated import times
from support.processes import inside
from support.traffic import (
    Connection,
    Stream,
    connect,
    echo,
    listen,
    many_descriptors,
    pattern,
    read_exactly,
)

KIB, MIB = 1 << 10, 1 << 20
CONNECTIONS = times(200)
MESSAGES = 4050
SOME = times(10)
ROUNDS = 2
TEXTBOOK_CONNECTIONS = 25
SLAB_MESSAGE = KIB  # sizeof(struct sk_msg), rounded up by kmalloc()
MESSAGE_BYTES = 1344  # bpf/carry/bounds.h
OVERSHOOT = 2 * 4096  # of a grant: the message that meets the limit and those of a small grant


def establish(number: int) -> list[Connection]:
    many_descriptors()
    with listen() as listener:
        return [connect(listener) for _ in range(number)]


def fill(sock: socket.socket, messages: int, size: int) -> int:
    """Sends until TCP would block; how many messages."""
    data = b"x" * size
    sock.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while sent < messages:
            sock.send(data)
            sent += 1
    return sent


def held_by_unread(connections: int, messages: int, size: int = 1) -> int:
    """Bytes of kernel memory while both ends of each have sent messages that nobody reads."""
    ends = [end for both in establish(connections) for end in (both.client, both.server)]
    before = memory.kernel_bytes()
    for end in ends:
        fill(end, messages, size)
    return memory.kernel_bytes() - before


def test_the_textbook_holds_a_lot(cgroup: Path, bpffs: Path) -> None:
    with textbook.attached(bpffs / "textbook-unread", cgroup):
        held = processes.run(held_by_unread, TEXTBOOK_CONNECTIONS, MESSAGES, cgroup=cgroup)
    assert held > TEXTBOOK_CONNECTIONS * 2 * MESSAGES * SLAB_MESSAGE // 2


def test_small_messages_cost_what_they_cost_with_tcp(cgroup: Path, generation: Generation) -> None:
    """Others use memory at the same time: the lowest of some figures, and the highest with TCP."""
    plain = max(processes.run(held_by_unread, CONNECTIONS, MESSAGES) for _ in range(ROUNDS))
    held = min(
        processes.run(held_by_unread, CONNECTIONS, MESSAGES, cgroup=cgroup) for _ in range(ROUNDS)
    )
    print(f"unread: {held / MIB:.1f} MiB, with plain TCP {plain / MIB:.1f} MiB")
    assert held <= 4 * plain + 32 * MIB
    counters = generation.counters()
    assert counters["accelerated_connections"] == ROUNDS * CONNECTIONS
    assert counters["redirected_messages"] >= ROUNDS * CONNECTIONS * 2 * 16


@pytest.mark.parametrize("size", [64, KIB, 16 * KIB])
def test_larger_messages_too(cgroup: Path, generation: Generation, size: int) -> None:
    """As many as TCP takes, or 4 MiB."""
    number = 4 * MIB // size
    plain = max(processes.run(held_by_unread, SOME, number, size) for _ in range(ROUNDS))
    held = min(
        processes.run(held_by_unread, SOME, number, size, cgroup=cgroup) for _ in range(ROUNDS)
    )
    print(f"unread: {held / MIB:.1f} MiB, with plain TCP {plain / MIB:.1f} MiB")
    assert held <= 4 * plain + 32 * MIB
    assert generation.counters()["redirected_messages"] >= ROUNDS * SOME * 2 * 16


def unread_memory(generation: Generation) -> Any:
    unread = record("unread_memory")
    return unread.unpack(libbpf.lookup(generation._pins["unread_memory"], bytes(4), unread.size))


def grants(generation: Generation) -> int:
    return int(settings_of(generation).grants)


def charged(generation: Generation) -> int:
    """Bytes."""
    unsigned = int(unread_memory(generation).charged[grants(generation) & 1])
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


LIMIT = 8 * MIB
LIMITED = [pytest.param({"memory_bytes": LIMIT, "learn": False}, id="8 MiB")]
STALLED = max(100, times(300))  # LIMIT has room for what 55 directions are granted


@pytest.mark.parametrize("size", [1, 1000, 64 * KIB])
@pytest.mark.parametrize("generation", LIMITED, indirect=True)
@inside()
def test_all_together_stay_within_memory_bytes(
    cgroup: Path, generation: Generation, size: int
) -> None:
    per_connection = 64 * KIB // size + 1 if size > 1 else 200
    stalled = establish(STALLED)
    sent = [
        (fill(b.client, per_connection, size), fill(b.server, per_connection, size))
        for b in stalled
    ]
    counters = generation.counters()
    held = counters["redirected_bytes"] + counters["redirected_messages"] * MESSAGE_BYTES
    assert LIMIT // 4 < held <= LIMIT + OVERSHOOT + size
    assert charged(generation) <= LIMIT
    for both, (forth, back) in zip(stalled, sent, strict=True):
        assert read_exactly(both.server, forth * size) == b"x" * (forth * size)
        assert read_exactly(both.client, back * size) == b"x" * (back * size)
    generation.members.retire(10, lambda walked: not walked.leaving)
    counters = generation.counters()
    assert counters["paused_memory"] > 0


@pytest.mark.parametrize("generation", LIMITED, indirect=True)
@inside()
def test_the_limit_is_free_again(cgroup: Path, generation: Generation) -> None:
    """What was closed unread counts no more; others are redirected again."""
    stalled = establish(STALLED)
    for both in stalled:
        fill(both.client, 60, KIB)
    with listen() as listener:
        assert redirected(generation, connect(listener), KIB, 1) == 0
        for both in stalled:
            both.close()
        generation.members.walk()
        assert redirected(generation, connect(listener), KIB, 16) == 16


@pytest.mark.parametrize("generation", LIMITED, indirect=True)
@inside()
def test_what_is_read_counts_no_more(cgroup: Path, generation: Generation) -> None:
    stalled = establish(STALLED)
    sent = [fill(both.client, 60, KIB) for both in stalled]
    with listen() as listener:
        assert redirected(generation, connect(listener), KIB, 1) == 0
        for both, number in zip(stalled, sent, strict=True):
            read_exactly(both.server, number * KIB)
        generation.members.walk()
        assert redirected(generation, connect(listener), KIB, 16) == 16


@pytest.mark.parametrize("generation", LIMITED, indirect=True)
@inside()
def test_idle_connections_do_not_keep_it(cgroup: Path, generation: Generation) -> None:
    """They hold what they were granted. Who finds no room asks for a walk, which counts anew."""
    idle = establish(STALLED)
    for both in idle:
        echo(both, 20)
    made: Counter[int] = Counter()
    with closing(RingBuffers()) as rings, listen() as listener:
        rings.add(generation.requests, lambda request: made.update([request[0]]))
        assert redirected(generation, connect(listener), KIB, 1) == 0
        rings.consume()
        assert made[REQUEST_WALK] == 1
        assert unread_memory(generation).recount
        generation.members.walk()
        assert redirected(generation, connect(listener), KIB, 16) == 16
    for both in idle:
        echo(both, 20)


RECOUNTS = times(1000)
# less than half of it is granted now and then only
SMALL = [pytest.param({"memory_bytes": MIB // 2, "learn": False}, id="512 KiB")]


@pytest.mark.parametrize("generation", SMALL, indirect=True)
@inside()
def test_senders_go_on_while_it_is_counted_anew(cgroup: Path, generation: Generation) -> None:
    """What they take meanwhile is counted, so that no more is ever given back."""
    enough = Event()

    def talk() -> None:
        with listen() as listener:
            while not enough.is_set():
                with closing(connect(listener)) as both:
                    echo(both, 20)

    first = grants(generation)
    with ThreadPoolExecutor() as threads:
        talking = [threads.submit(talk) for _ in range(4)]
        lowest = 0
        try:
            while grants(generation) < first + RECOUNTS:
                generation.members.walk()
                lowest = min(lowest, charged(generation))
        finally:
            enough.set()
        for thread in talking:
            thread.result()
    assert lowest == 0


# of a reader that keeps up: message size, and how far its sender runs ahead
STEADY = [(64, 4 * KIB), (KIB, 128 * KIB), (16 * KIB, MIB // 2), (64 * KIB, MIB // 2)]


@pytest.mark.parametrize(("chunk", "step"), STEADY)
@pytest.mark.parametrize("sender", ["client", "server"])
@inside()
def test_a_reader_that_keeps_up(
    cgroup: Path, generation: Generation, sender: str, chunk: int, step: int
) -> None:
    # of few, those count for much that go by TCP until the window has grown
    number = 8192 if chunk <= KIB else times(8192)
    size = min(64 * MIB, chunk * number) // step * step
    with listen() as listener:
        both = connect(listener)
    if sender == "server":
        both = Connection(both.server, both.client)
    stream = Stream()
    while stream.position < size:
        for position in range(stream.position, stream.position + step, chunk):
            both.client.sendall(pattern(position, chunk))
        stream.read(both.server, step)
    counters = generation.counters()
    assert counters["redirected_messages"] >= 0.98 * (size // chunk)
    both.close()


BURSTS = {"bytes": (64 * KIB, 20, 100), "messages": (1, 2000, 4000)}


@pytest.mark.parametrize("kind", BURSTS)
@inside()
def test_the_window_grows(cgroup: Path, generation: Generation, kind: str) -> None:
    """A burst that is too large for a new connection fits once its reader has kept up."""
    size, number, rounds = BURSTS[kind]
    with listen() as listener:
        new, used = connect(listener), connect(listener)
    assert redirected(generation, new, size, number) < number
    stream = Stream()
    for _ in range(rounds):
        used.client.sendall(pattern(stream.position, size))
        stream.read(used.server, size)
    assert redirected(generation, used, size, number) == number


def redirected(generation: Generation, both: Connection, size: int, number: int) -> int:
    """How many messages of a burst are redirected, while nobody reads them."""
    before = generation.counters()["redirected_messages"]
    fill(both.client, number, size)
    return generation.counters()["redirected_messages"] - before
