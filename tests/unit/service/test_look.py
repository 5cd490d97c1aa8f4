"""When the daemon looks for live connections, by what its looks have found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sockredird.datapath.join import Looked
from sockredird.service.look import FIRST_S, FREE_LOOKS, LONGEST_S, SHARE, SOON_S, Looks
from sockredird.service.systemd import next_tick
from sockredird.service.tasks import Tasks
from sockredird.service.worker import Worker
from support.checkout import REPOSITORY

UNIT = REPOSITORY / "systemd" / "sockredird.service"
SECONDS = 0.007  # of a look
NOTHING = Looked(0, 0, 0, 0, False, SECONDS)
NEW = Looked(5, 0, 0, 5, False, SECONDS)
JOINS = Looked(5, 5, 0, 0, False, SECONDS)
LEFT = Looked(5, 0, 5, 0, False, SECONDS)


def pauses(*found: Looked) -> list[float]:
    """After each of these looks, from begin() on, in seconds."""
    results, seen = list(found), []

    class Recorded(Looks):
        def _at(self, due: float) -> None:
            seen.append(round(due - asyncio.get_running_loop().time(), 2))

    async def run() -> None:
        looks = Recorded(Tasks(), Worker(), lambda: results.pop(0), lambda: None)
        looks.begin()
        for _ in found:
            await looks._run()

    asyncio.run(run())
    return seen[1:]  # without that of begin()


def test_what_is_there_at_enable_joins_at_once() -> None:
    assert pauses(NEW, JOINS, NOTHING) == [SOON_S, SOON_S, 2 * SOON_S]


def test_what_an_old_generation_hands_over_joins_at_once() -> None:
    """At the first looks it is still a member of that one's sockhash."""
    assert pauses(NOTHING, NOTHING, NEW, JOINS) == [FIRST_S, 2 * FIRST_S, SOON_S, SOON_S]


def test_a_share_of_the_time() -> None:
    """Of any sequence of looks, but for the free ones, and one that is half of a decision."""
    mixed = [NOTHING, NEW, NEW, NEW, LEFT, NEW, LEFT, NOTHING, NEW, NEW, NEW, LEFT] * 10
    found = pauses(*[NOTHING] * FREE_LOOKS, *mixed)[FREE_LOOKS - 1 :]
    assert sum(found) >= SHARE * SECONDS * (len(mixed) - 1)


def test_within_15_s() -> None:
    """However long it has been quiet: a connection is seen, and joins at the look after that."""
    *_, longest, seen, _ = pauses(*[replace(NOTHING, seconds=0.0)] * 20, NEW, JOINS)
    assert longest <= LONGEST_S
    assert LONGEST_S + seen < 15.0


def test_a_connection_that_was_declined_is_looked_for_once_the_last_looks_are_paid_for() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        loop.time = lambda: now  # a collection of garbage takes a while
        looks = Looks(Tasks(), Worker(), lambda: NOTHING, lambda: None)
        looks.begin()
        for _ in range(FREE_LOOKS + 1):
            await looks._run()
        assert looks._timer is not None
        assert looks._timer.when() > now + SHARE * SECONDS + SOON_S
        looks.soon()
        assert looks._timer.when() - now == pytest.approx(SHARE * SECONDS, abs=SOON_S)

    asyncio.run(run())


def test_a_connection_that_is_declined_during_a_look_has_another_look() -> None:
    class Meanwhile(Worker):
        async def run(self, job: Callable[[], Any]) -> Any:
            looks.soon()
            return job()

    async def run() -> None:
        looks.begin()
        for _ in range(FREE_LOOKS + 1):
            await looks._run()
        assert looks._timer is not None
        assert looks._timer.when() - asyncio.get_running_loop().time() <= SOON_S

    looks = Looks(Tasks(), Meanwhile(), lambda: replace(NOTHING, seconds=0.0), lambda: None)
    asyncio.run(run())


def test_after_a_look_that_failed_there_is_another() -> None:
    def look() -> Looked:
        raise RuntimeError("injected")

    async def run() -> None:
        looks = Looks(Tasks(), Worker(), look, lambda: None)
        looks.begin()
        with pytest.raises(RuntimeError, match="injected"):
            await looks._run()
        assert looks._timer is not None
        assert looks._timer.when() - asyncio.get_running_loop().time() <= LONGEST_S

    asyncio.run(run())


def test_a_look_that_finds_nothing_wakes_the_processor_with_the_watchdog() -> None:
    assert f"\nWatchdogSec={2 * LONGEST_S:.0f}\n" in UNIT.read_text()
    now, before = 1000.3, next_tick(1000.3, LONGEST_S)
    for _ in range(5):
        looked, pinged = (next_tick(now, interval) for interval in (LONGEST_S, 24 / 2))
        assert looked == pinged
        assert 0 < looked - now <= LONGEST_S
        assert looked - before in (0, LONGEST_S)
        before = looked
        now = looked + SECONDS + SHARE * SECONDS  # which it takes, and rests
