"""The rest between walks: short after a single one, long enough for a share of the time in all."""

from __future__ import annotations

import pytest

from sockredird.datapath.members import REST
from sockredird.service.rest import CREDIT_S, LONGEST_S, SHARE, Rest

SECONDS = 60.0


def rests(rest: Rest, took: float, began: float) -> list[float]:
    """Of rounds that each begin as soon as they may, for SECONDS."""
    found: list[float] = []
    now = began
    while now < began + SECONDS:
        now += took
        rest.begin(took, now)
        found.append(rest.ends_at - now)
        now = rest.ends_at
    return found


def test_after_a_single_round() -> None:
    rest = Rest()
    rest.begin(0.05, 1000.0)
    assert rest.ends_at == pytest.approx(1000.0 + REST * 0.05)


@pytest.mark.parametrize("took", [0.0005, 0.05, 0.1, 0.12])
def test_one_after_the_other(took: float) -> None:
    found = rests(Rest(), took, 1000.0)
    assert min(found) > 0.99 * REST * took
    assert max(found) < LONGEST_S
    assert len(found) * took / SECONDS < 1 / SHARE + (CREDIT_S / SHARE + took) / SECONDS


def test_every_second() -> None:
    """Rounds that rest longer than they have to are not to rest longer still."""
    rest = Rest()
    for second in range(1000, 1060):
        rest.begin(0.02, float(second))
        assert rest.ends_at == pytest.approx(second + REST * 0.02)


def test_there_is_a_longest() -> None:
    assert max(rests(Rest(), 0.4, 1000.0)) == pytest.approx(LONGEST_S)


def test_ten_times_in_any_case() -> None:
    assert min(rests(Rest(), 0.6, 1000.0)) == pytest.approx(REST * 0.6)


@pytest.mark.parametrize("took", [0.1, 0.4])
def test_short_again_after_a_while(took: float) -> None:
    """However long they were asked for one after the other."""
    rest = Rest()
    rests(rest, took, 1000.0)
    later = rest.ends_at + CREDIT_S
    rest.begin(0.01, later)
    assert rest.ends_at == pytest.approx(later + REST * 0.01)
