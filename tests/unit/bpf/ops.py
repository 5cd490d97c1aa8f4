"""What threads of a litmus test are made of: accesses to memory, barriers and branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["full", "load", "store"]


@dataclass(frozen=True)
class Load:
    into: str
    place: str
    after: tuple[str, ...] = ()  # registers that its address is made of
    acquire: bool = False


@dataclass(frozen=True)
class Store:
    place: str
    value: int | str  # or a register
    after: tuple[str, ...] = ()
    release: bool = False


@dataclass(frozen=True)
class Add:
    """An atomic instruction that returns nothing: no load for barriers."""

    place: str
    amount: int
    release: bool = False


@dataclass(frozen=True)
class Exchange:
    """An atomic instruction that returns the old value, and is a full barrier unless `relaxed`."""

    into: str
    place: str
    value: int
    site: str = ""  # as in Barrier
    relaxed: bool = False


@dataclass(frozen=True)
class Barrier:
    """`site` says where it is in the C: a function, with a number if that has several."""

    kind: Kind
    site: str = ""  # the kernel's own


@dataclass(frozen=True)
class If:
    """A branch; what follows it in the thread follows both. What was never loaded has no value."""

    register: str
    value: int
    then: Ops = ()
    otherwise: Ops = ()


@dataclass(frozen=True)
class Guess:
    """That a branch went this way."""

    register: str
    value: int
    equal: bool


Op = Load | Store | Add | Exchange | Barrier | If
Ops = tuple[Op, ...]
Step = Load | Store | Add | Exchange | Barrier | Guess
Path = tuple[Step, ...]


def without(ops: Ops, site: str) -> Ops:
    """The same with one barrier taken out."""
    left: list[Op] = []
    for op in ops:
        if isinstance(op, Barrier) and op.site == site:
            continue
        if isinstance(op, Exchange) and op.site == site:
            op = Exchange(op.into, op.place, op.value, relaxed=True)
        elif isinstance(op, If):
            op = If(op.register, op.value, without(op.then, site), without(op.otherwise, site))
        left.append(op)
    return tuple(left)


def part_of(ops: Ops, name: str) -> Op | None:
    """The access that loads this register, or stores to this place."""
    for op in ops:
        if isinstance(op, If):
            found = part_of(op.then, name) or part_of(op.otherwise, name)
            if found:
                return found
        elif name in (getattr(op, "into", None), op.place if isinstance(op, Store) else None):
            return op
    return None


def leave_out(ops: Ops, gone: Op) -> Ops:
    left: list[Op] = []
    for op in ops:
        if isinstance(op, If):
            op = If(op.register, op.value, leave_out(op.then, gone), leave_out(op.otherwise, gone))
        if op is not gone:
            left.append(op)
    return tuple(left)


def sites(ops: Ops) -> dict[str, Kind]:
    """The barriers that the C has, by where they are."""
    found: dict[str, Kind] = {}
    for op in ops:
        if isinstance(op, If):
            found |= sites(op.then) | sites(op.otherwise)
        elif isinstance(op, Barrier | Exchange) and op.site:
            found[op.site] = op.kind if isinstance(op, Barrier) else "full"
    return found


def paths(ops: Ops, known: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The ways through the branches. `known` are registers that have been loaded before."""
    if not ops:
        yield ()
        return
    first, rest = ops[0], ops[1:]
    if not isinstance(first, If):
        if isinstance(first, Load | Exchange):
            known |= {first.into}
        for path in paths(rest, known):
            yield (first, *path)
        return
    if first.register not in known:
        yield from paths(first.otherwise + rest, known)
        return
    for equal, branch in ((True, first.then), (False, first.otherwise)):
        for path in paths(branch + rest, known):
            yield (Guess(first.register, first.value, equal), *path)


def reads(step: Step) -> bool:
    return isinstance(step, Load | Exchange)


def writes(step: Step) -> bool:
    return isinstance(step, Store | Add | Exchange)
