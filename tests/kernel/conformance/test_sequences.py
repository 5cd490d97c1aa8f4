"""Accelerated connections are like plain ones whatever is done to them; see sequences.py."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies

from kernel.conformance import differences, results
from kernel.conformance.catalogue import ALONE
from kernel.conformance.places import Plain, Textbook, nothing_to_do
from kernel.conformance.results import Kernel
from kernel.conformance.sequences import Differs, Step, Twins, steps
from sockredird.datapath.generation import Generation
from sockredird.datapath.members import Walked
from support import cgroups
from support.datapath import plan, tear_down
from support.emulated import EMULATED, PATIENCE, times
from support.processes import outside
from support.traffic import Connection, connect, listen

# In a forked child the garbage collector does not know who refers to the objects of its parent.
pytestmark = pytest.mark.filterwarnings("ignore:It looks like `register_random`")
# The same sequences each time, but in `make torture`.
MANY = "SOCKREDIR_TORTURE" in os.environ
SEQUENCES, DATAPATHS = (20_000, 500) if MANY else (times(500), times(25))
TIMEOUT_S = 1800 if MANY else 120
SMALL_WINDOW = 2000  # the smaller, the more connections go to TCP with data unread on either side
LOOK_S = 0.02
TAKEN_AWAY_S = 5.0 * PATIENCE
KERNEL = Kernel(results.running_version(), sees=False, ktls=False)
# On kernels where redirected data does not count
FIONREAD_DIFFERS = differences.DIFFERENCES["fionread"].applies(ALONE, KERNEL)
UNLIKE = frozenset({"fionread"} if FIONREAD_DIFFERS else ())
SETTINGS = settings(
    max_examples=SEQUENCES,
    derandomize=not MANY,
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


def connection_in(cgroup: Path) -> Connection:
    cgroups.join(cgroup)
    with listen() as listener:
        return connect(listener)


@contextmanager
def twins(plain: Plain, other: Path, look: Callable[[], bool] = lambda: True) -> Iterator[Twins]:
    both = Twins(connection_in(plain.cgroup), connection_in(other), look)
    try:
        yield both
    finally:
        both.close()


def nothing_there(walked: Walked) -> bool:
    return walked.entries == 0


@pytest.mark.parametrize(
    ("generation", "often"),
    [({"window_bytes": SMALL_WINDOW}, "paused_window"), ({}, "retired_half_closed")],
    indirect=["generation"],
    ids=["2000 bytes", "4 MiB"],
)
@outside(timeout=TIMEOUT_S)
def test_alike(plain: Plain, cgroup: Path, generation: Generation, often: str) -> None:
    def look() -> bool:
        return generation.members.retire(LOOK_S, nothing_to_do)

    @SETTINGS
    @given(steps(without=UNLIKE))
    def check(sequence: list[Step]) -> None:
        # what one sequence does, the listener of another with the same port is not left alone for
        for listener, _entry in list(generation.learned()):
            generation.remove_learned(listener)
        with twins(plain, cgroup, look) as both:
            both.run(sequence)
            both.read_all()

    check()
    counters = generation.counters()
    assert counters["accelerated_connections"] >= SEQUENCES
    # fewer than one for each where the processor is slow: a direction begins at a quiet point
    assert counters["redirected_messages"] > (SEQUENCES // 2 if EMULATED else SEQUENCES)
    assert counters[often] > 0 or EMULATED  # where there are too few for it


@outside(timeout=TIMEOUT_S)
def test_taken_away(plain: Plain, cgroup: Path, bpffs: Path) -> None:
    """The datapath goes while each of some connections is somewhere in its sequence."""
    numbers = itertools.count(1)
    directory = bpffs / "taken-away"
    sequence = steps(without=UNLIKE)
    redirected = 0

    @settings(SETTINGS, max_examples=DATAPATHS)
    @given(strategies.lists(strategies.tuples(sequence, sequence), min_size=4, max_size=12))
    def check(sequences: list[tuple[list[Step], list[Step]]]) -> None:
        nonlocal redirected
        made = plan(cgroup, window_bytes=SMALL_WINDOW)
        generation = Generation.create(directory, next(numbers), made)

        def look() -> bool:
            return generation.members.retire(LOOK_S, nothing_to_do)

        try:
            with ExitStack() as stack:
                pairs = [stack.enter_context(twins(plain, cgroup, look)) for _ in sequences]
                for both, (before, _) in zip(pairs, sequences, strict=True):
                    both.run(before)
                redirected += generation.counters()["redirected_messages"]
                generation.stop()
                for both, (_, after) in zip(pairs, sequences, strict=True):
                    both.run(after)
                    both.read_all()
                assert generation.members.retire(TAKEN_AWAY_S, nothing_there), (
                    generation.members.walk()
                )
                for both in pairs:
                    both.read_all()
        finally:
            generation.close()
            tear_down(generation.directory)

    check()
    assert redirected > DATAPATHS


@outside(timeout=TIMEOUT_S)
def test_unlike(plain: Plain, wrong: Textbook) -> None:
    """The textbook datapath is found out."""

    @settings(SETTINGS, phases=(Phase.generate,))
    @given(steps())
    def check(sequence: list[Step]) -> None:
        with twins(plain, wrong.cgroup) as both:
            both.run(sequence)

    with pytest.raises(Differs):
        check()
