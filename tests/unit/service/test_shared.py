"""Runs of something expensive that many ask for at the same time."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress

import pytest

from sockredird.service.shared import LONGEST_REST_S, REST, Fresh


class Clock:
    """What is produced: how often it was, and what it was when it began."""

    def __init__(self) -> None:
        self.runs = 0
        self.value = 0

    async def produce(self) -> tuple[int, float]:
        self.runs += 1
        value = self.value
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return value, 0.0


def test_joined_is_never_older_than_the_question() -> None:
    clock = Clock()
    fresh = Fresh(clock.produce)

    async def ask() -> None:
        before = clock.value
        assert await fresh.get() >= before

    async def all_at_various_times() -> None:
        asking = []
        for _ in range(200):
            clock.value += 1
            asking += [asyncio.create_task(ask()) for _ in range(5)]
            await asyncio.sleep(0)
        await asyncio.gather(*asking)

    asyncio.run(all_at_various_times())
    assert clock.runs < 150


def test_joined_is_one_run_for_all() -> None:
    clock = Clock()
    fresh = Fresh(clock.produce)

    async def together() -> None:
        await asyncio.gather(*(fresh.get() for _ in range(1000)))

    asyncio.run(together())
    assert clock.runs == 1


def test_a_failure_and_one_who_gives_up() -> None:
    async def fail() -> tuple[int, float]:
        await asyncio.sleep(0)
        raise OSError("injected")

    async def main() -> None:
        fresh = Fresh(fail)
        impatient = asyncio.create_task(fresh.get())
        patient = asyncio.create_task(fresh.get())
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(OSError, match="injected"):
            await patient
        with pytest.raises(OSError, match="injected"):
            await fresh.get()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("took", "rest"), [(0.01, REST * 0.01), (1.0, LONGEST_REST_S), (None, LONGEST_REST_S)]
)
def test_fresh_rests_between_two_runs(took: float | None, rest: float) -> None:
    """Whoever asks all the time has it run for a small part of the time only; None: it fails."""
    runs: list[tuple[float, float]] = []

    async def take_a_while() -> tuple[None, float]:
        began = time.monotonic()
        await asyncio.sleep(0.01)
        runs.append((began, time.monotonic()))
        if took is None:
            raise OSError("injected")
        return None, took

    async def main() -> None:
        fresh = Fresh(take_a_while)
        for _ in range(3):
            with suppress(OSError):
                await fresh.get()

    asyncio.run(main())
    for (_, ended), (next_one, _) in itertools.pairwise(runs):
        assert next_one - ended >= rest - 0.005
