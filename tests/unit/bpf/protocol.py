"""What a protocol between processors is, and what several have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from unit.bpf.litmus import Outcome
from unit.bpf.ops import Add, Barrier, If, Load, Ops, Store

KERNEL = Barrier("full")  # locks let go and taken


@dataclass(frozen=True)
class Protocol:
    """Registers have names of their own: no other thread has such a one, nor is it a place."""

    threads: dict[str, Ops]  # by the functions of that side, in the order in which they run
    wrong: Callable[[Outcome], bool]
    initial: dict[str, int] = field(default_factory=dict)


def full(site: str) -> Barrier:
    return Barrier("full", site)


def loads(site: str) -> Barrier:
    return Barrier("load", site)


def stores(site: str) -> Barrier:
    return Barrier("store", site)


def has(**expected: int) -> Callable[[Outcome], bool]:
    """Whether registers and places have these values."""

    def check(outcome: Outcome) -> bool:
        values = {name.rpartition(" ")[2]: value for name, value in outcome.items()}
        return expected.items() <= values.items()

    return check


def either(*cases: Callable[[Outcome], bool]) -> Callable[[Outcome], bool]:
    return lambda outcome: any(case(outcome) for case in cases)


# A redirect puts the message into the peer's queue, then gives back the sender's reference.
REDIRECTS: Ops = (Store("queue", 1), Add("references", -1, release=True))
# Of who relies on it that nobody sends, and that the queue is empty.
LOOKS: Ops = (
    Load("idle", "references"),
    If("idle", 1, (loads("idle_sender"), Load("unread", "queue"))),
)
