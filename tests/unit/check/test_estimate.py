"""The arithmetic of the estimate."""

from __future__ import annotations

from typing import Any

import pytest

from sockredird.check import estimate
from sockredird.check.estimate import Connection, Seen

ROWS: list[dict[str, Any]] = [
    {"work": "round trip, 64 B, one CPU", "plain_cpu": 20.0, "accelerated_cpu": 10.0},
    {"work": "round trip, 64 B, two CPUs", "plain_cpu": 90.0, "accelerated_cpu": 10.0},
    {"work": "round trip, 8 KiB, one CPU", "plain_cpu": 40.0, "accelerated_cpu": 10.0},
    {"work": "stream, writes of 1 KiB", "plain_cpu": 900.0, "accelerated_cpu": 1000.0},
]


@pytest.mark.parametrize(
    ("size", "microseconds"), [(1, 5), (64, 5), (4128, 10), (8192, 15), (16384, 15)]
)
def test_a_message_saves_half_of_what_a_round_trip_does(size: int, microseconds: float) -> None:
    saved = estimate.saved_per_message(ROWS)
    assert saved is not None
    assert saved(size) == pytest.approx(microseconds * 1e-6)


def test_one_size_that_was_measured_stands_for_all() -> None:
    saved = estimate.saved_per_message(ROWS[:2])
    assert saved is not None
    assert saved(8192) == pytest.approx(5e-6)


def test_without_a_round_trip_on_one_cpu_there_is_none() -> None:
    assert estimate.of(ROWS[3:], Seen([])) == {}
    assert estimate.of(ROWS, Seen(None)).keys() == {"accelerated"}


def test_messages_times_what_each_saves() -> None:
    small: Connection = [(10_000, 640_000), (0, 0)]
    both: Connection = [(1_000, 64_000), (1_000, 8_192_000)]
    half: Connection = [(1_000, 64_000), (1_000, 64_000_000)]  # answers of 64 KB are not counted
    large: Connection = [(0, 0), (1_000, 64_000_000)]
    kinds = estimate.of(ROWS, Seen([small, both, half, large], [small]))
    assert kinds["tcp"] == {
        "connections": 3,
        "messages_per_second": 13_000,
        "message_bytes": round((640_000 + 64_000 + 8_192_000 + 64_000) / 13_000),
        "saved_cpu_seconds": pytest.approx(12_000 * 5e-6 + 1_000 * 15e-6),
        "large_connections": 1,
    }
    assert kinds["accelerated"]["saved_cpu_seconds"] == pytest.approx(10_000 * 5e-6)
