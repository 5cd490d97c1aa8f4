"""Each behaviour over plain TCP and over accelerated connections: the same, or known to differ.

SOCKREDIR_RESULTS=directory writes there what was found. Where that is results/ itself, a result
that is not known to be right is not written, and none is compared with what was there before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.conformance import differences, results
from kernel.conformance.behaviours import ALL
from kernel.conformance.catalogue import Behaviour
from kernel.conformance.places import Accelerated, Plain
from kernel.conformance.results import Found, Kernel
from kernel.conformance.runner import ENDED, run
from support.emulated import EMULATED

WRITE_TO = os.environ.get("SOCKREDIR_RESULTS", "")
RECORDING = bool(WRITE_TO) and Path(WRITE_TO).resolve() == results.RESULTS


def is_as_expected(behaviour: Behaviour, found: Found, kernel: Kernel) -> bool:
    known = differences.expected(behaviour, kernel)
    if RECORDING:
        return set(found["differs"]) == known
    return differences.agrees(set(found["differs"]), known, kernel)


@pytest.fixture(scope="module")
def found(accelerated: Accelerated) -> Iterator[dict[str, Found]]:
    """By name; written to a file in the end if somebody asked for it."""
    collected: dict[str, Found] = {}
    yield collected
    if RECORDING:
        right = {
            b.name
            for b in ALL
            if b.name in collected and is_as_expected(b, collected[b.name], accelerated.kernel)
        }
        missing = {b.name for b in ALL} - right
        assert not missing, f"nothing is written: {sorted(missing)} failed, or did not run"
    if WRITE_TO:
        results.write(Path(WRITE_TO), accelerated.kernel, collected)


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
    result = found[behaviour.name] = compare(behaviour, plain, accelerated)
    assert is_as_expected(behaviour, result, accelerated.kernel), (
        f"differs from plain TCP in {sorted(result['differs'])}, and differences.py has "
        f"{sorted(differences.expected(behaviour, accelerated.kernel))}:\n"
        f"{json.dumps(result, indent=1, ensure_ascii=False)}"
    )
    recorded = results.read(results.path(results.RESULTS, accelerated.kernel.name))
    # what is noted of timing may be another there
    if recorded and not RECORDING and not EMULATED:
        assert result == recorded.get(behaviour.name), "results/ is out of date: make semantics"
