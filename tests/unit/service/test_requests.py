"""What the daemon does about requests of the datapath: one thing of a kind at a time, and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sockredird.loader.records import REQUEST_LEARNED, REQUEST_WALK
from sockredird.service import daemon
from sockredird.service.daemon import Daemon
from sockredird.service.rest import Rest

SOON_S = 0.01


class Worker:
    """Takes until `go` for each job; `fails` says whether that number of a job fails."""

    def __init__(self, fails: Callable[[int], bool] = lambda _number: False) -> None:
        self.jobs: list[str] = []
        self.running = self.most = 0
        self.go = asyncio.Event()
        self._fails = fails

    async def run(self, job: Callable[[], Any]) -> Any:
        self.jobs.append(job.__name__)
        self.running += 1
        self.most = max(self.most, self.running)
        await self.go.wait()
        self.running -= 1
        if self._fails(len(self.jobs)):
            raise OSError("injected")
        return job()


class Manager:
    done = True

    def note_learned(self) -> None:
        pass

    def finish_retirements(self) -> bool:
        return self.done


def made(worker: Worker) -> Any:
    """The part of a daemon that requests reach."""
    one: Any = Daemon.__new__(Daemon)
    one._loop, one._worker, one._manager = asyncio.get_running_loop(), worker, Manager()
    one._learn_timer = one._retire_timer = None
    one._learn_again = one._retire_again = one._retiring = False
    one._learn_at, one._retire_pause, one._rest = 0.0, daemon.RETIRE_PAUSE_S[0], Rest()
    one._looks, one._tasks = daemon.Looks(lambda: asyncio.sleep(0), lambda: None), set()
    return one


def answered(what: int, *, fails: Callable[[int], bool] = lambda _number: False) -> list[str]:
    """The jobs of the worker after requests that came before and while it was carried out."""

    async def main() -> list[str]:
        worker = Worker(fails)
        one = made(worker)
        if what == REQUEST_LEARNED:  # walks are asked for afterwards
            one._retire_soon = lambda: None
        one._request(what)
        for _ in range(3):
            await asyncio.sleep(SOON_S)
            one._request(what)
        worker.go.set()
        await asyncio.sleep(20 * SOON_S)
        assert worker.most == 1
        return worker.jobs

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "LEARN_PAUSE_S", SOON_S)
    monkeypatch.setattr(daemon, "LEARN_REST", 1)


@pytest.mark.parametrize(
    ("what", "job"), [(REQUEST_LEARNED, "note_learned"), (REQUEST_WALK, "_timed_retirements")]
)
def test_one_at_a_time_and_once_more(what: int, job: str) -> None:
    assert answered(what) == [job] * 2


def test_walks_that_fail_are_tried_again() -> None:
    """The programs do not ask again before a walk has begun."""
    assert answered(REQUEST_WALK, fails=lambda number: number < 4) == ["_timed_retirements"] * 4


def test_walks_do_not_wait_for_the_pause_of_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """One who does not drain its queue has others wait for nothing but the rest."""
    monkeypatch.setattr(daemon, "RETIRE_PAUSE_S", (1000.0, 1000.0))
    monkeypatch.setattr(Manager, "done", False)

    async def main() -> None:
        worker = Worker()
        worker.go.set()
        one = made(worker)
        for number in (1, 2, 3):
            one._request(REQUEST_WALK)
            await asyncio.sleep(5 * SOON_S)
            assert len(worker.jobs) == number

    asyncio.run(main())
