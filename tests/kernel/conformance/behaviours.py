"""Imports all modules of behaviours, in the order of the document."""

from __future__ import annotations

from kernel.conformance import (
    closing,
    establishing,
    interrupting,
    options,
    order,
    programs,
    readiness,
    reading,
    sharing,
    splicing,
    uring,
)
from kernel.conformance.catalogue import BEHAVIOURS, Behaviour

AREAS = (
    order,
    reading,
    readiness,
    closing,
    interrupting,
    splicing,
    uring,
    options,
    sharing,
    establishing,
    programs,
)
ALL: tuple[Behaviour, ...] = tuple(
    behaviour
    for area in AREAS
    for behaviour in BEHAVIOURS.values()
    if behaviour.function.__module__ == area.__name__
)
assert len(ALL) == len(BEHAVIOURS), "a module of behaviours is not in AREAS"
