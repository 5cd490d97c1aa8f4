"""Each protocol of the datapath is right with its barriers, and wrong without any one of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unit.bpf.litmus import Processor, outcomes
from unit.bpf.ops import Barrier, Exchange, If, Load, Ops, leave_out, part_of, sites, without
from unit.bpf.protocol import Protocol, has
from unit.bpf.protocols import PROTOCOLS


def goes_wrong(
    protocol: Protocol, threads: dict[str, Ops], processor: Processor = "aarch64"
) -> bool:
    return any(map(protocol.wrong, outcomes(threads, protocol.initial, processor)))


def compiled(ops: Ops) -> Ops:
    """What the barriers of state.h, and of sockredir_msg(), are on x86."""
    for site, kind in sites(ops).items():
        if kind != "full" or site == "sockredir_msg":
            ops = without(ops, site)
    return ops


def barriers(protocol: Protocol) -> list[str]:
    return sorted({site for ops in protocol.threads.values() for site in sites(ops)})


def registers(ops: Ops) -> set[str]:
    found: set[str] = set()
    for op in ops:
        if isinstance(op, If):
            found |= registers(op.then) | registers(op.otherwise)
        elif isinstance(op, Load | Exchange):
            found.add(op.into)
    return found


@pytest.mark.parametrize("name", PROTOCOLS)
def test_it_is_right(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert barriers(protocol)
    assert not goes_wrong(protocol, protocol.threads)


@pytest.mark.parametrize(
    ("name", "site"),
    [(name, site) for name, protocol in PROTOCOLS.items() for site in barriers(protocol)],
)
def test_it_is_wrong_without(name: str, site: str) -> None:
    protocol = PROTOCOLS[name]
    threads = {side: without(ops, site) for side, ops in protocol.threads.items()}
    assert goes_wrong(protocol, threads)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_it_is_right_on_x86(name: str) -> None:
    """Where barriers of loads, and of stores, are instructions to the compiler only."""
    protocol = PROTOCOLS[name]
    threads = {side: compiled(ops) for side, ops in protocol.threads.items()}
    assert not goes_wrong(protocol, threads, "x86")


@pytest.mark.parametrize("site", ["by_tcp_on_member 2", "at_border 2", "visit"])
def test_it_is_wrong_on_x86_without(site: str) -> None:
    """Other full barriers stand beside an atomic instruction there."""
    (protocol,) = (one for one in PROTOCOLS.values() if site in barriers(one))
    threads = {side: without(ops, site) for side, ops in protocol.threads.items()}
    assert goes_wrong(protocol, threads, "x86")


# An access of one side that comes before, or after, all others of it in the wrong order.
FIRST = [
    ("shut down as the peer is paired", "half_closed", "peer"),
    ("a refused call reads, and its connection ends", "note_readers", "cause"),
    ("read before a call that does not find what is unread", "to_be_reset", "unread"),
    ("a redirect ends while a walk looks", "retire", "unread"),
    ("a redirect ends as its reader is reset", "ended", "unread"),
    ("splice(2) with nothing unread while a peer sends", "sockredir_spliced", "unread"),
    ("forced to TCP while a walk looks", "force_to_tcp", "borders"),
    ("an end finds its peer, and somebody looks for it", "find_other_end", "sk"),
]
LAST = [("splice(2) while a peer sends", "what_changed, would_be_overtaken", "cause")]


@pytest.mark.parametrize(
    ("name", "side", "access", "first"),
    [(*one, True) for one in FIRST] + [(*one, False) for one in LAST],
)
def test_the_other_way_round_is_wrong(name: str, side: str, access: str, first: bool) -> None:
    """On x86 as well, and whatever barriers there are."""
    protocol = PROTOCOLS[name]
    ops = protocol.threads[side]
    moved = part_of(ops, access)
    assert moved is not None
    rest = leave_out(ops, moved)
    swapped = (moved, Barrier("full"), *rest) if first else (*rest, Barrier("full"), moved)
    assert goes_wrong(protocol, {**protocol.threads, side: swapped}, "x86")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_name_means_one_thing(name: str) -> None:
    """has() leaves out whose register it is."""
    protocol = PROTOCOLS[name]
    names = [one for ops in protocol.threads.values() for one in registers(ops)]
    (outcome, *_rest) = outcomes(protocol.threads, protocol.initial)
    names += [name for name in outcome if ": " not in name]
    assert len(names) == len(set(names))


def test_looking_once_misses_a_reader_that_wakes_for_nothing() -> None:
    """It is off the wait queue between two looks at the lock, and has not got that at either."""
    twice = PROTOCOLS["a reader wakes in TCP's code for nothing, and sleeps again"]
    up_to_the_second_lock = twice.threads["may_begin"][:5]
    once = replace(twice, wrong=has(locked=0, sleeps=0, locked_again=0))
    assert goes_wrong(once, {**twice.threads, "may_begin": up_to_the_second_lock})
