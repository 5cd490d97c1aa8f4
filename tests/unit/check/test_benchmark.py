"""The rows of bench: what becomes of the rounds."""

from __future__ import annotations

import pytest

from sockredird.check.benchmark import WORKS, Measured, Row

ONE_CPU, TWO_CPUS, STREAM = WORKS[0], WORKS[1], WORKS[3]


def rounds(*times: tuple[float, float]) -> list[Measured]:
    """One for each pair: microseconds that a round trip took, and those of processor time in it."""
    return [Measured(1e6 / passed, cpu / 1e6) for passed, cpu in times]


def test_processor_time_where_other_programs_run() -> None:
    plain = rounds((40, 19), (60, 20), (30, 21))
    row = Row.of(ONE_CPU, plain, rounds((30, 14), (45, 15), (25, 16)))
    assert (row.plain_cpu, row.accelerated_cpu) == pytest.approx((20, 15))
    assert (row.plain, row.accelerated) == pytest.approx((40, 30))


def test_the_time_that_passes_where_softirqs_are_counted_apart() -> None:
    """As with CONFIG_IRQ_TIME_ACCOUNTING: 8 us of 20 are those of a softirq."""
    plain, accelerated = rounds((20, 12), (21, 12)), rounds((15, 15), (16, 15))
    row = Row.of(ONE_CPU, plain, accelerated)
    assert (row.plain_cpu, row.accelerated_cpu) == pytest.approx((20.5, 15.5))
    row = Row.of(TWO_CPUS, plain, accelerated)  # where the ends wait for each other
    assert (row.plain_cpu, row.accelerated_cpu) == pytest.approx((12, 15))


def test_a_stream_has_no_processor_time() -> None:
    row = Row.of(STREAM, [Measured(2e9)], [Measured(1e9)])
    assert (row.plain, row.accelerated, row.unit) == (2000, 1000, "MB/s")
    assert (row.plain_cpu, row.accelerated_cpu) == (0, 0)
