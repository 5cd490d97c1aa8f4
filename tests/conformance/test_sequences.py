"""Accelerated connections are like plain ones whatever is done to them; see sequences.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from conformance.places import Plain, Textbook
from conformance.sequences import Differs, Step, Twins, steps
from sockredird.generation import Generation, Walked
from support import cgroups
from support.emulated import times
from support.processes import outside
from support.traffic import Connection, connect, listen

# In a forked child the garbage collector does not know who refers to the objects of its parent.
pytestmark = pytest.mark.filterwarnings("ignore:It looks like `register_random`")
# The same sequences each time, but in `make torture`.
MANY = "SOCKREDIR_TORTURE" in os.environ
SEQUENCES = 20_000 if MANY else times(500)
LOOK_S = 0.02


def connection_in(cgroup: Path) -> Connection:
    cgroups.join(cgroup)
    with listen() as listener:
        return connect(listener)


def check(
    plain: Path,
    other: Path,
    *,
    look: Callable[[], bool] = lambda: True,
    prepare: Callable[[], None] = lambda: None,
    phases: tuple[Phase, ...] = (Phase.generate, Phase.shrink),
) -> None:
    """Raises Differs; the error has a short sequence of calls that leads there."""

    @settings(
        phases=phases,
        max_examples=SEQUENCES,
        derandomize=not MANY,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(steps())
    def run(sequence: list[Step]) -> None:
        prepare()
        twins = Twins(connection_in(plain), connection_in(other), look)
        try:
            twins.run(sequence)
        finally:
            twins.close()

    run()


def nothing_leaving(walked: Walked) -> bool:
    return walked.leaving == 0


# The smaller the window, the more connections leave with data unread on either side.
@pytest.mark.parametrize(
    ("generation", "leaves"),
    [({"window_bytes": 2000}, "window"), ({}, "half_closed")],
    indirect=["generation"],
    ids=["2000 bytes", "4 MiB"],
)
@outside(timeout=1800 if MANY else 120)
def test_alike(plain: Plain, cgroup: Path, generation: Generation, leaves: str) -> None:

    def prepare() -> None:
        # what one sequence does, the listener of another with the same port is not left alone for
        for listener, _lesson in list(generation.lessons()):
            generation.unteach(listener)

    def look() -> bool:
        return generation.retire(LOOK_S, nothing_leaving)

    check(plain.cgroup, cgroup, look=look, prepare=prepare)
    counters = generation.counters()
    assert counters["accelerated_connections"] >= SEQUENCES
    assert counters["redirected_messages"] > SEQUENCES
    assert counters[f"retired_{leaves}"] > 0


@outside(timeout=120)
def test_unlike(plain: Plain, wrong: Textbook) -> None:
    """The textbook datapath is found out."""
    with pytest.raises(Differs):
        check(plain.cgroup, wrong.cgroup, phases=(Phase.generate,))
