"""Each protocol of the datapath is right with its barriers, and wrong without any one of them."""

from __future__ import annotations

import pytest

from unit.bpf.litmus import Processor, outcomes
from unit.bpf.ops import Exchange, If, Load, Ops, sites, without
from unit.bpf.protocol import Protocol
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


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_name_means_one_thing(name: str) -> None:
    """has() leaves out whose register it is."""
    protocol = PROTOCOLS[name]
    names = [one for ops in protocol.threads.values() for one in registers(ops)]
    (outcome, *_rest) = outcomes(protocol.threads, protocol.initial)
    names += [name for name in outcome if ": " not in name]
    assert len(names) == len(set(names))
