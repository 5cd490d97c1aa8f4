"""The table of sequences of boots names tests that are there, and results that are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

import vm
from support.checkout import REPOSITORY
from vm.guest.boots import SEQUENCES, Sequence
from vm.kernels import KERNELS

GUEST = Path(vm.__path__[0]) / "guest"
BY_NAME = pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)


@BY_NAME
def test_stages_have_tests(sequence: Sequence) -> None:
    for boot in sequence.boots:
        for stage in boot.stages:
            places = ((GUEST, stage.guest), (REPOSITORY, stage.checkout))
            for directory, names in places:
                assert all(any(directory.glob(name)) for name in names), stage


@BY_NAME
def test_stages_have_names_of_their_own(sequence: Sequence) -> None:
    names = [stage.name for boot in sequence.boots for stage in boot.stages]
    assert len({*names, *SEQUENCES}) == len(names) + len(SEQUENCES)


def test_results_have_names_of_their_own() -> None:
    names = [kernel.run_name(boots) for kernel in KERNELS for boots in SEQUENCES]
    assert len({*names}) == len(names)
    assert {kernel.run_name() for kernel in KERNELS} <= {*names}
