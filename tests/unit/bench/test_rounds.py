"""Rounds: a fair order, ratios within a round, and the null hypothesis refused when it is false."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from bench.__main__ import judge_null
from bench.datapaths import AGAIN, EXCLUDED, JOINED, OURS, RETIRED, TCP, of_base
from bench.workload import Sample, Workload, order, ratio_names, ratios, visited

NAMES = ("tcp", "sockredird", "textbook", "unix")


def test_each_datapath_is_before_each_other_equally_often() -> None:
    rounds = [order(NAMES, number) for number in range(2 * len(NAMES))]
    assert all(sorted(names) == sorted(NAMES) for names in rounds)
    before = Counter(
        pair for names in rounds for pair in permutations(NAMES, 2)
        if names.index(pair[0]) < names.index(pair[1])
    )  # fmt: skip
    assert len(set(before.values())) == 1
    assert {names[0] for names in rounds} == {names[-1] for names in rounds} == set(NAMES)


def test_what_is_compared() -> None:
    assert ratio_names(NAMES) == [
        "sockredird/tcp",
        "textbook/tcp",
        "unix/tcp",
        "sockredird/textbook",
        "sockredird/unix",
    ]
    assert ratio_names(("tcp", "excluded")) == ["excluded/tcp"]


def test_beside_another_checkout_each_of_our_datapaths_has_its_counterpart() -> None:
    edges = Workload(
        *("edges", "", "", "", ""), lambda _: Sample(1, 1, 1), (TCP, EXCLUDED, RETIRED)
    )
    names = visited(edges, null=False, base=True)
    assert names == [TCP, EXCLUDED, RETIRED, "base excluded", "base retired"]
    assert ratio_names(names)[-2:] == ["excluded/base excluded", "retired/base retired"]
    everywhere = replace(edges, datapaths=(*NAMES, JOINED))
    assert visited(everywhere, null=False, base=True) == [TCP, OURS, of_base(OURS)]
    assert visited(everywhere, null=True, base=False) == [TCP, AGAIN, OURS, "textbook", JOINED]


def rounds_of(tcp: list[float], again: list[float]) -> list[dict[str, dict[str, float]]]:
    return [{TCP: {"rate": a}, AGAIN: {"rate": b}} for a, b in zip(tcp, again, strict=True)]


def test_drift_of_the_machine_is_not_in_the_ratios() -> None:
    speeds = [100.0, 50.0, 25.0, 200.0]
    assert ratios(rounds_of(speeds, [1.5 * s for s in speeds]), f"{AGAIN}/{TCP}") == [1.5] * 4


def null_results(factor: float) -> dict[str, Any]:
    noise = [1.02, 0.97, 1.01, 0.99, 1.03, 0.98, 1.005, 0.995, 1.0]
    rounds = rounds_of([100.0] * len(noise), [100.0 * factor * n for n in noise])
    entry = {
        "name": "made-up",
        "datapaths": {TCP: {}, AGAIN: {}},
        "ratios": {f"{AGAIN}/{TCP}": {}},
        "rounds": rounds,
    }
    return {"workloads": [entry]}


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.05, 1), (0.95, 1)])
def test_a_biased_harness_is_found(factor: float, status: int) -> None:
    assert judge_null(null_results(factor)) == status
