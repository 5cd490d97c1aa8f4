"""docs/semantics.md is what the recorded results make of it, and the results fit the table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernel.conformance import differences, document, results
from kernel.conformance.behaviours import ALL

RECORDED = results.all_recorded()


def test_document() -> None:
    assert document.DOCUMENT.read_text() == document.text(), "out of date: make semantics"


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_results(name: str) -> None:
    assert RECORDED[name].keys() == {behaviour.name for behaviour in ALL}
    kernel = results.recorded_kernel(name)
    for behaviour in ALL:
        found = RECORDED[name][behaviour.name]
        assert found["differs"].keys() == differences.expected(behaviour, kernel), behaviour.name


def test_table() -> None:
    assert differences.DIFFERENCES.keys() <= {behaviour.name for behaviour in ALL}
    used = {difference.reason for difference in differences.DIFFERENCES.values()}
    assert used == differences.REASONS.keys()


def test_a_newer_release_may_have_put_something_right() -> None:
    known = {"fresh client", "used client"}
    recorded = results.recorded_kernel(next(iter(RECORDED)))
    newer = replace(recorded, version=(*recorded.series, recorded.version[2] + 1))
    for kernel in recorded, newer:
        assert differences.agrees(known, known, kernel)
        assert not differences.agrees(known | {"left client"}, known, kernel)
        assert differences.agrees(set(), known, kernel) == (kernel is newer)
