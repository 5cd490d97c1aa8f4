"""Streams of small messages go to TCP, which merges them; whatever else is small stays."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support.processes import inside
from support.traffic import Connection, Stream, connection, echo, pattern

BATCH = 64
BATCHES = 200
# carry/redirect.c: STREAM_NS, STREAM_MESSAGES; state.h: MESSAGES_PER_SAMPLE
LIMIT_NS, FEWEST, SAMPLE = 4000, 1024, 256


def stream(both: Connection, size: int, between: Callable[[], object] = lambda: None) -> list[int]:
    """Sends batches of messages, each read before the next; CPU time before, and after each."""
    arrived = Stream()
    position = 0
    chunks = [pattern(i * size, size) for i in range(BATCH * BATCHES)]
    times = [time.thread_time_ns()]
    for chunk in chunks:
        both.client.send(chunk)
        position += size
        if position % (BATCH * size) == 0:
            arrived.read(both.server, BATCH * size)
            between()
            times.append(time.thread_time_ns())
    return times


def fastest(times: list[int], first: int) -> float:
    """Nanoseconds per message, as the program sees them that first looks after `first` messages."""
    begin = first // BATCH
    ends = range(begin + FEWEST // BATCH, len(times), SAMPLE // BATCH)
    return min((times[end] - times[begin]) / (end - begin) / BATCH for end in ends)


def retired(generation: Generation) -> int:
    return generation.counters()["retired_small_stream"]


@inside()
def test_a_stream_of_small_messages_leaves(cgroup: Path, generation: Generation) -> None:
    with connection() as both:
        times = stream(both, 64)
        paces = fastest(times, 0), fastest(times, SAMPLE)
        redirected = generation.counters()["redirected_messages"]
        generation.retire(10, lambda walked: not walked.leaving)
        left = bool(retired(generation))
        assert (retired(generation), generation.walk().entries) == ((1, 0) if left else (0, 2))
        if left:
            assert FEWEST <= redirected < BATCH * BATCHES
        else:
            assert redirected == BATCH * BATCHES
        # Which of both depends on how fast this machine is; near the limit it may be either.
        if max(paces) < LIMIT_NS * 0.75:
            assert left, paces
        if min(paces) > LIMIT_NS * 1.5:
            assert not left, paces
        echo(both, 10)


def test_a_sender_that_works_between_stays(cgroup: Path, generation: Generation) -> None:
    """As on a slow machine: with twice the limit for each message there is little to merge."""

    def work() -> None:
        end = time.thread_time_ns() + 2 * LIMIT_NS * BATCH
        while time.thread_time_ns() < end:
            pass

    stays(cgroup, generation, lambda both: stream(both, 64, work))


@pytest.mark.parametrize("size", [4096, 16384])
def test_larger_messages_stay(cgroup: Path, generation: Generation, size: int) -> None:
    stays(cgroup, generation, lambda both: stream(both, size))


def test_conversations_stay(cgroup: Path, generation: Generation) -> None:
    stays(cgroup, generation, lambda both: echo(both, BATCH * BATCHES, 64))


def test_a_sender_that_waits_between_stays(cgroup: Path, generation: Generation) -> None:
    """It may be slow in sending, so that there is nothing to merge."""

    def wait() -> None:
        select.select([], [], [], 1e-6)

    stays(cgroup, generation, lambda both: stream(both, 64, wait))


def stays(cgroup: Path, generation: Generation, talk: Callable[[Connection], object]) -> None:
    @inside()
    def run(cgroup: Path) -> None:
        with connection() as both:
            talk(both)
            assert retired(generation) == 0
            assert generation.walk().entries == 2
            assert generation.counters()["redirected_messages"] >= BATCH * BATCHES

    run(cgroup=cgroup)
