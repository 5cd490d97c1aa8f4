"""Medians and their intervals, against what is known of fair coins and of made-up samples."""

from __future__ import annotations

import random
import statistics

import pytest

from bench.spread import CONFIDENCE, FEWEST_ROUNDS, Spread, coverage, simultaneous, spread


def test_coverage_of_the_extremes() -> None:
    """All of n values on one side of their median: twice one in 2^n."""
    assert coverage(5, 1) == 1 - 2 / 32
    assert coverage(9, 2) == pytest.approx(1 - 2 * 10 / 512)


def test_fewest_rounds_is_the_smallest_number_with_an_interval() -> None:
    assert coverage(FEWEST_ROUNDS, 1) >= CONFIDENCE > coverage(FEWEST_ROUNDS - 1, 1)


def test_the_narrowest_interval_is_taken() -> None:
    values = list(range(15))
    assert coverage(15, 3) >= CONFIDENCE > coverage(15, 4)
    assert spread(values) == Spread(7, 2, 12)


def test_too_few_values_give_their_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([1.0]) == Spread(1.0, 1.0, 1.0)


def skewed(random_: random.Random) -> float:
    """As timings are: never much faster, at times a lot slower."""
    return 1.0 + random_.expovariate(3.0)


@pytest.mark.parametrize("count", [FEWEST_ROUNDS, 9, 15])
def test_intervals_contain_the_true_median_as_often_as_they_say(count: int) -> None:
    random_ = random.Random(count)
    truth = 1.0 + statistics.median([random_.expovariate(3.0) for _ in range(100_001)])
    runs = 2000
    hits = sum(spread([skewed(random_) for _ in range(count)]).contains(truth) for _ in range(runs))
    # three standard deviations of a binomial below what is promised
    assert hits / runs >= CONFIDENCE - 3 * (CONFIDENCE * (1 - CONFIDENCE) / runs) ** 0.5


def test_a_difference_larger_than_the_noise_is_seen() -> None:
    random_ = random.Random(1)
    ratios = [1.1 * skewed(random_) / skewed(random_) for _ in range(200)]
    assert not spread(ratios).contains(1.0)


def test_all_of_a_family_hold_together() -> None:
    assert simultaneous(1, 0.01) == 0.99
    assert (1 - simultaneous(50, 0.01)) * 50 == pytest.approx(0.01)
