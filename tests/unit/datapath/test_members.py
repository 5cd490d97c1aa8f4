"""How often retire() walks, and what it waits for in between."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sockredird.datapath.members import REST, SHOWS_S, Members, Walked
from sockredird.kernel import libbpf

SLICE_S = 0.1


class Walks(Members):
    """Of a sockhash that is made up: `found` is what each walk meets, the last one for ever."""

    def __init__(self, *found: Walked, stopped: bool = False, took: float = 0.0) -> None:
        self.events: list[Any] = []
        self._found = list(found)
        self.walk_seconds = took
        settings: Any = SimpleNamespace(
            now=SimpleNamespace(stopped=stopped, epoch=0), set=self._set
        )
        self._settings = settings

    def _set(self, epoch: int) -> None:
        self.events.append("epoch")

    def walk(self) -> Walked:
        self.events.append("walk")
        return self._found.pop(0) if len(self._found) > 1 else self._found[0]


def walked(*, leaving: int = 0, unsettled: int = 0) -> Walked:
    return Walked(entries=2, connections=1, leaving=leaving, unsettled=unsettled)


def done(found: Walked) -> bool:
    return not found.leaving and not found.unsettled


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by sleeping only; each sleep is an event of the walks."""
    now = [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(libbpf, "wait_for_programs", lambda: None)


def test_one_walk_if_nothing_is_to_do() -> None:
    walks = Walks(walked())
    assert walks.retire(SLICE_S, done)
    assert walks.events == ["walk"]


def test_a_second_one_for_what_shows_soon() -> None:
    walks = Walks(walked(unsettled=1), walked())
    assert walks.retire(SHOWS_S, done)
    assert walks.events == ["walk", "walk"]


def test_a_grace_period_for_what_leaves() -> None:
    walks = Walks(walked(leaving=1), walked())
    assert walks.retire(0.0, done)
    assert walks.events == ["walk", "epoch", "walk"]


def test_first_what_shows_soon() -> None:
    walks = Walks(walked(leaving=1, unsettled=1), walked(leaving=1), walked())
    assert walks.retire(0.0, done)
    assert walks.events == ["walk", "walk", "epoch", "walk"]


def test_a_grace_period_before_each_look_at_a_stopped_generation() -> None:
    walks = Walks(walked(leaving=1), walked(leaving=1), walked(), stopped=True)
    assert walks.retire(SLICE_S, done)
    assert walks.events == ["epoch", "walk"] * 3


@pytest.mark.parametrize(("took", "count"), [(0.0001, 9), (SLICE_S / REST, 2)])
def test_few_walks_that_take_long(took: float, count: int) -> None:
    walks = Walks(walked(unsettled=1), took=took)
    assert not walks.retire(SLICE_S, done)
    assert walks.events == ["walk"] * count


def test_a_stopped_generation_is_looked_at_again_soon() -> None:
    walks = Walks(walked(leaving=1), stopped=True, took=SLICE_S)
    assert not walks.retire(SLICE_S, done)
    assert walks.events.count("walk") == 3
