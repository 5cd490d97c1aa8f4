"""What the daemon does about requests of the datapath: one thing of a kind at a time, and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sockredird.service import learned, walks
from sockredird.service.learned import LearnedLooks
from sockredird.service.tasks import Tasks
from sockredird.service.walks import Walks

SOON_S = 0.01

Kind = type[LearnedLooks] | type[Walks]


class Worker:
    """Takes until `go` for each job; `fails` says whether that number of a job fails."""

    def __init__(self, fails: Callable[[int], bool] = lambda _number: False) -> None:
        self.jobs = 0
        self.running = self.most = 0
        self.go = asyncio.Event()
        self._fails = fails

    async def run(self, job: Callable[[], Any]) -> Any:
        self.jobs += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await self.go.wait()
        self.running -= 1
        if self._fails(self.jobs):
            raise OSError("injected")
        return job()


def made(kind: Kind, worker: Any, *, done: bool = True) -> LearnedLooks | Walks:
    return kind(Tasks(), worker, lambda: done, lambda: None)


def answered(kind: Kind, *, fails: Callable[[int], bool] = lambda _number: False) -> int:
    """How many jobs requests come to that were made before the first one, and while it ran."""

    async def main() -> int:
        worker = Worker(fails)
        one = made(kind, worker)
        one.soon()
        for _ in range(3):
            await asyncio.sleep(SOON_S)
            one.soon()
        worker.go.set()
        await asyncio.sleep(20 * SOON_S)
        assert worker.most == 1
        return worker.jobs

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "PAUSE_S", SOON_S)
    monkeypatch.setattr(learned, "REST", 1)


@pytest.mark.parametrize("kind", [LearnedLooks, Walks])
def test_one_at_a_time_and_once_more(kind: Kind) -> None:
    assert answered(kind) == 2


def test_walks_that_fail_are_tried_again() -> None:
    """The programs do not ask again before a walk has begun."""
    assert answered(Walks, fails=lambda number: number < 4) == 4


def test_walks_do_not_wait_for_the_pause_of_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """One who does not drain its queue has others wait for nothing but the rest."""
    monkeypatch.setattr(walks, "PAUSE_S", (1000.0, 1000.0))

    async def main() -> None:
        worker = Worker()
        worker.go.set()
        one = made(Walks, worker, done=False)
        for number in (1, 2, 3):
            one.soon()
            await asyncio.sleep(5 * SOON_S)
            assert worker.jobs == number

    asyncio.run(main())
