"""Each behaviour over plain TCP and over accelerated connections: the same, or known to differ.

SOCKREDIR_RESULTS=directory writes what was found there, and compares it with nothing on record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance import differences, results
from conformance.behaviours import ALL
from conformance.catalogue import Behaviour
from conformance.places import Accelerated, Plain
from conformance.results import Found
from conformance.runner import ENDED, run

SERIES = results.running_series()
WRITE_TO = os.environ.get("SOCKREDIR_RESULTS")


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Found]]:
    """By name; written to a file in the end if somebody asked for it."""
    collected: dict[str, Found] = {}
    yield collected
    if WRITE_TO:
        missing = {behaviour.name for behaviour in ALL} - collected.keys()
        assert not missing, f"nothing is written: {sorted(missing)} failed or did not run"
        results.write(results.path(Path(WRITE_TO), SERIES), collected)


def compare(behaviour: Behaviour, plain: Plain, accelerated: Plain) -> Found:
    """What TCP gives, the same each time, and where the other place gives something else."""
    wanted = None
    differing = {}
    for variant in behaviour.variants:
        notes = run(behaviour, variant, plain)
        assert ENDED not in notes, f"{variant}, plain TCP: {notes}"
        assert wanted in (None, notes), f"plain TCP differs from itself: {wanted}, {notes}"
        wanted = notes
        here = run(behaviour, variant, accelerated)
        if here != notes:
            differing[str(variant)] = here
    return {"plain": wanted, "differs": differing}


@pytest.mark.parametrize("behaviour", ALL, ids=lambda behaviour: behaviour.name)
def test_as_plain_tcp(
    behaviour: Behaviour, plain: Plain, accelerated: Accelerated, found: dict[str, Found]
) -> None:
    result = compare(behaviour, plain, accelerated)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    known = differences.expected(behaviour, SERIES)
    assert result["differs"].keys() == known, (
        f"differs from plain TCP in {sorted(result['differs'])}, "
        f"and differences.py has {sorted(known)}:\n{text}"
    )
    recorded = results.read(results.path(results.RESULTS, SERIES))
    if recorded and not WRITE_TO:
        assert result == recorded.get(behaviour.name), "results/ is out of date: make semantics"
    found[behaviour.name] = result
