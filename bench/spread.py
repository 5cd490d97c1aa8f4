"""A median, and the interval it lies in: what every figure of the benchmark is.

The interval comes from order statistics: whatever the distribution of the rounds, the k-th smallest
and the k-th largest of n values enclose its median unless fewer than k of n fair coins fall on one
side. Nothing is assumed to be normal, and no outlier is thrown away.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

CONFIDENCE = 0.99
FEWEST_ROUNDS = 8  # for CONFIDENCE: with fewer, not even the extremes enclose the median so often


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __format__(self, spec: str) -> str:
        """Each of the three as the spec says, with two digits after the point if it is empty."""
        spec = spec or ".2f"
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"

    def __str__(self) -> str:
        return f"{self}"


def coverage(count: int, rank: int) -> float:
    """Probability that the `rank`-th smallest and largest of `count` values enclose the median."""
    return 1 - 2.0 * sum(comb(count, i) for i in range(rank)) / 2.0**count


def spread(values: Sequence[float], confidence: float = CONFIDENCE) -> Spread:
    """The narrowest symmetric interval of at least that confidence; the extremes if none is."""
    ordered = sorted(values)
    count = len(ordered)
    rank = 1
    while 2 * (rank + 1) <= count and coverage(count, rank + 1) >= confidence:
        rank += 1
    return Spread(statistics.median(ordered), ordered[rank - 1], ordered[count - rank])


def simultaneous(family: int, doubt: float = 0.01) -> float:
    """Confidence of each of `family` intervals so that all hold but for `doubt` (Bonferroni)."""
    return 1 - doubt / family
