"""The model allows of the classic tests what aarch64 allows, and nothing that it forbids.

The tests have the names of the literature (Maranget, Sarkar, Sewell: A Tutorial Introduction to the
ARM and POWER Relaxed Memory Models), and the outcomes those of ARMv8 (Pulte and others: Simplifying
ARM Concurrency), which lets no thread see a store before another one does. Those of x86 are from
Owens, Sarkar, Sewell: A Better x86 Memory Model.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from unit.bpf.litmus import Outcome, Processor, outcomes
from unit.bpf.ops import Add, Barrier, Exchange, If, Load, Op, Ops, Store

X, Y = Store("x", 1), Store("y", 1)
FULL, LOADS, STORES = Barrier("full"), Barrier("load"), Barrier("store")


@dataclass(frozen=True)
class Classic:
    threads: tuple[Ops, ...]
    outcome: Outcome
    allowed: bool


def at(into: str, place: str, *after: str) -> Load:
    return Load(into, place, after)


def message(*between: Op, writer: Ops = (X, FULL, Y)) -> tuple[Ops, ...]:
    """MP: whoever sees the second store sees the first one, or not."""
    return writer, (at("a", "y"), *between, at("b", "x"))


STALE = {"1: a": 1, "1: b": 0}
NEITHER = {"0: a": 0, "1: a": 0}
BOTH = {"0: a": 1, "1: a": 1}
APART = {"2: a": 1, "2: b": 0, "3: a": 1, "3: b": 0}


def buffering(zero: Ops, one: Ops) -> tuple[Ops, ...]:
    """SB: each writes, then reads what the other one writes."""
    return (X, *zero, at("a", "y")), (Y, *one, at("a", "x"))


def early(zero: Op, one: Op) -> tuple[Ops, ...]:
    """LB: each reads, then writes what the other one reads."""
    return (at("a", "x"), zero), (at("a", "y"), one)


def readers(between: Ops, *after: str) -> tuple[Ops, ...]:
    """IRIW: two writers, and two readers that may see them in another order."""
    two = (at("a", "x"), *between, at("b", "y", *after))
    three = (at("a", "y"), *between, at("b", "x", *after))
    return (X,), (Y,), two, three


CLASSICS = {
    "SB": Classic(buffering((), ()), NEITHER, True),
    "SB+dmbs": Classic(buffering((FULL,), (FULL,)), NEITHER, False),
    "SB+dmb+po": Classic(buffering((FULL,), ()), NEITHER, True),
    "SB+dmb.sts": Classic(buffering((STORES,), (STORES,)), NEITHER, True),
    "SB+dmb.lds": Classic(buffering((LOADS,), (LOADS,)), NEITHER, True),
    "SB+rel-acqs": Classic(
        (
            (Store("x", 1, release=True), Load("a", "y", acquire=True)),
            (Store("y", 1, release=True), Load("a", "x", acquire=True)),
        ),
        NEITHER,
        False,
    ),
    "SB+rels": Classic(
        (
            (Store("x", 1, release=True), at("a", "y")),
            (Store("y", 1, release=True), at("a", "x")),
        ),
        NEITHER,
        True,
    ),
    "SB+swp-als": Classic(
        ((Exchange("o", "x", 1), at("a", "y")), (Exchange("o", "y", 1), at("a", "x"))),
        NEITHER,
        False,
    ),
    "SB+swps": Classic(
        (
            (Exchange("o", "x", 1, relaxed=True), at("a", "y")),
            (Exchange("o", "y", 1, relaxed=True), at("a", "x")),
        ),
        NEITHER,
        True,
    ),
    "MP": Classic(message(writer=(X, Y)), STALE, True),
    "MP+dmb+po": Classic(message(), STALE, True),
    "MP+po+dmb": Classic(message(FULL, writer=(X, Y)), STALE, True),
    "MP+dmbs": Classic(message(FULL), STALE, False),
    "MP+dmb.st+dmb.ld": Classic(message(LOADS, writer=(X, STORES, Y)), STALE, False),
    "MP+dmb.ld+dmb.ld": Classic(message(LOADS, writer=(X, LOADS, Y)), STALE, True),
    "MP+dmb+dmb.st": Classic(message(STORES), STALE, True),
    "MP+dmb+addr": Classic(((X, FULL, Y), (at("a", "y"), at("b", "x", "a"))), STALE, False),
    "MP+dmb+ctrl": Classic(
        ((X, FULL, Y), (at("a", "y"), If("a", 1, (at("b", "x"),)))), STALE, True
    ),
    "MP+dmb+ctrl-dmb.ld": Classic(
        ((X, FULL, Y), (at("a", "y"), If("a", 1, (LOADS, at("b", "x"))))), STALE, False
    ),
    "MP+rel+acq": Classic(
        ((X, Store("y", 1, release=True)), (Load("a", "y", acquire=True), at("b", "x"))),
        STALE,
        False,
    ),
    "MP+add.rel+dmb.ld": Classic(message(LOADS, writer=(X, Add("y", 1, True))), STALE, False),
    "MP+add+dmb.ld": Classic(message(LOADS, writer=(X, Add("y", 1))), STALE, True),
    # the store of z is not seen before the branch is decided, but its own thread reads it
    "PPOCA": Classic(
        (
            (X, FULL, Y),
            (at("a", "y"), If("a", 1, (Store("z", 1), at("c", "z"), at("b", "x", "c")))),
        ),
        STALE,
        True,
    ),
    "PPOAA": Classic(
        (
            (X, FULL, Y),
            (at("a", "y"), Store("z", 1, ("a",)), at("c", "z"), at("b", "x", "c")),
        ),
        STALE,
        False,
    ),
    # two loads of z that read the same store may do so in either order
    "RSW": Classic(
        (
            (X, FULL, Y),
            (at("a", "y"), at("c", "z", "a"), at("d", "z"), at("b", "x", "d")),
        ),
        STALE,
        True,
    ),
    "LB": Classic(early(Y, X), BOTH, True),
    "LB+datas": Classic(early(Store("y", "a"), Store("x", "a")), BOTH, False),
    "LB+data+po": Classic(early(Store("y", "a"), X), BOTH, True),
    "LB+ctrls": Classic(
        (
            (at("a", "x"), If("a", 1, (Store("y", 1),))),
            (at("a", "y"), If("a", 1, (Store("x", 1),))),
        ),
        BOTH,
        False,
    ),
    "LB+ctrl+dmb": Classic(
        ((at("a", "x"), If("a", 1, (Store("y", 1),))), (at("a", "y"), FULL, Store("x", 1))),
        BOTH,
        False,
    ),
    "2+2W": Classic(((X, Store("y", 2)), (Y, Store("x", 2))), {"x": 1, "y": 1}, True),
    "2+2W+dmb.sts": Classic(
        ((X, STORES, Store("y", 2)), (Y, STORES, Store("x", 2))), {"x": 1, "y": 1}, False
    ),
    "2+2W+dmb.st+po": Classic(
        ((X, STORES, Store("y", 2)), (Y, Store("x", 2))), {"x": 1, "y": 1}, True
    ),
    "S": Classic(((Store("x", 2), Y), (at("a", "y"), X)), {"1: a": 1, "x": 2}, True),
    "S+dmb+po": Classic(((Store("x", 2), FULL, Y), (at("a", "y"), X)), {"1: a": 1, "x": 2}, True),
    "S+dmb+data": Classic(
        ((Store("x", 2), FULL, Y), (at("a", "y"), Store("x", "a"))), {"1: a": 1, "x": 2}, False
    ),
    "S+dmb+ctrl": Classic(
        ((Store("x", 2), FULL, Y), (at("a", "y"), If("a", 1, (X,)))),
        {"1: a": 1, "x": 2},
        False,
    ),
    "R": Classic(((X, Y), (Store("y", 2), at("a", "x"))), {"1: a": 0, "y": 2}, True),
    "R+dmb+po": Classic(((X, FULL, Y), (Store("y", 2), at("a", "x"))), {"1: a": 0, "y": 2}, True),
    "R+dmb.st+dmb": Classic(
        ((X, STORES, Y), (Store("y", 2), FULL, at("a", "x"))), {"1: a": 0, "y": 2}, False
    ),
    "R+dmbs": Classic(
        ((X, FULL, Y), (Store("y", 2), FULL, at("a", "x"))), {"1: a": 0, "y": 2}, False
    ),
    "WRC+pos": Classic(
        ((X,), (at("a", "x"), Y), (at("a", "y"), at("b", "x"))),
        {"1: a": 1, "2: a": 1, "2: b": 0},
        True,
    ),
    "WRC+data+addr": Classic(
        ((X,), (at("a", "x"), Store("y", "a")), (at("a", "y"), at("b", "x", "a"))),
        {"1: a": 1, "2: a": 1, "2: b": 0},
        False,
    ),
    "IRIW": Classic(readers(()), APART, True),
    "IRIW+addrs": Classic(readers((), "a"), APART, False),
    "IRIW+dmb.lds": Classic(readers((LOADS,)), APART, False),
    "IRIW+dmb.sts": Classic(readers((STORES,)), APART, True),
    "IRIW+dmbs": Classic(readers((FULL,)), APART, False),
    "CoRR": Classic(((X,), (at("a", "x"), at("b", "x"))), {"1: a": 1, "1: b": 0}, False),
    "CoWW": Classic(((X, Store("x", 2)),), {"x": 1}, False),
    "CoWR": Classic(((X, at("a", "x")),), {"0: a": 0}, False),
    "CoRW": Classic(((at("a", "x"), X),), {"0: a": 1}, False),
    "two adds": Classic(((Add("x", 1),), (Add("x", 1),)), {"x": 1}, False),
}


# There a load does not wait for a store, be that a release and the load an acquire.
ALLOWED_ON_X86 = {
    *("SB", "SB+dmb+po", "SB+dmb.sts", "SB+dmb.lds", "SB+rel-acqs", "SB+rels"),
    *("R", "R+dmb+po"),
}


def found(classic: Classic, processor: Processor) -> bool:
    program = {str(number): ops for number, ops in enumerate(classic.threads)}
    return any(classic.outcome.items() <= one.items() for one in outcomes(program, {}, processor))


@pytest.mark.parametrize("name", CLASSICS)
def test_a_classic(name: str) -> None:
    classic = CLASSICS[name]
    assert found(classic, "aarch64") == classic.allowed
    assert found(classic, "x86") == (name in ALLOWED_ON_X86)
