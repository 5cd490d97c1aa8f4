"""Directions that go to TCP and come back all the time: every byte in order, nobody stuck (I1, I2).

The attacked build goes to TCP at one quiet point in eight, pairs that had to leave are joined again
at once, and programs of all kinds check every byte (attacks.py). Two builds lack one condition each
of carry/begin.h, and are seen to corrupt such traffic; test_conditions.py has the other conditions.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel.carry.attacks import ATTACKS, EVERYWHERE, NOT_FORCED, Connect, on
from support import processes
from support.alternation import ALTERNATES, NO_LOOK_AT_THE_LOCK, served
from support.edited import Edit, generation_of
from support.emulated import PATIENCE, times
from support.topology import Family, veth
from support.traffic import Corrupted, Stream, connect, listen, pattern

MIB = 1 << 20
SECONDS = float(
    os.environ.get("SOCKREDIR_SECONDS") or (120 if "SOCKREDIR_TORTURE" in os.environ else 2)
)
# as if the reader had always read what went by TCP
UNREAD_TCP: Edit = (
    "carry/begin.h",
    "copied != own_write_seq(tp) ||",
    "0 ||",
)


# as if nothing redirected were ever unread
ANY_MOMENT: Edit = (
    "carry/begin.h",
    "	return tp && psock && kernel_psock_refcnt(psock_of((__u64)tp)) == 2 &&\n"
    "	       psock_queue_empty(psock);\n",
    "	return tp && psock;\n",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_ipv4(cgroup: Path, bpffs: Path, tmp_path: Path, attack: str) -> None:
    check(attack, lambda: on("127.0.0.1"), cgroup, bpffs, tmp_path)


@pytest.mark.parametrize("attack", EVERYWHERE)
def test_ipv6(cgroup: Path, bpffs: Path, tmp_path: Path, attack: str) -> None:
    check(attack, lambda: on("::1"), cgroup, bpffs, tmp_path)


@pytest.mark.parametrize("attack", EVERYWHERE)
def test_veth(cgroup: Path, bpffs: Path, tmp_path: Path, attack: str) -> None:
    def network() -> Connect:
        return veth(Family(4)).connect

    check(attack, network, cgroup, bpffs, tmp_path, addresses="any")


def check(
    name: str,
    network: Callable[[], Connect],
    cgroup: Path,
    bpffs: Path,
    directory: Path,
    addresses: str = "loopback",
) -> None:
    """`network` is made in the process that attacks."""

    def run() -> int:
        return ATTACKS[name](network(), int(os.environ.get("SOCKREDIR_SEED", "1")), SECONDS)

    edits = [ALTERNATES, NO_LOOK_AT_THE_LOCK] if name in NOT_FORCED else [ALTERNATES]
    edited = generation_of(edits, bpffs, cgroup, directory, learn=False, addresses=addresses)
    with edited as generation, served(generation, addresses):
        try:
            total = processes.run(run, cgroup=cgroup, timeout=SECONDS + 60)
            print(f"{total / MIB:.0f} MiB,", end=" ")
        finally:
            counters = generation.counters()
            print(f"{counters['paused_revalidation']} times to TCP,", end=" ")
            print({name: n for name, n in counters.items() if n and name.startswith("retired")})
    assert counters["paused_revalidation"] > 0
    assert counters["redirected_messages"] > 0


def unread_tcp_data() -> bytes:
    """A message by TCP that is unread, and one that would be redirected past it."""
    with listen() as listener:
        both = connect(listener)
    seen = b""
    for number in range(times(200)):
        for half in (b"%03da" % number, b"%03db" % number):
            both.client.sendall(half)
        while len(seen) < 8 * (number + 1):
            seen += both.server.recv(100)
    both.close()
    expected = b"".join(b"%03da%03db" % (number, number) for number in range(times(200)))
    if seen != expected:
        raise Corrupted("out of order")
    return seen


def swapped() -> bool:
    try:
        unread_tcp_data()
    except Corrupted:
        return True
    return False


@pytest.mark.parametrize("without", [False, True], ids=["with", "without"])
def test_the_reader_has_read_all_of_tcp(
    cgroup: Path, bpffs: Path, tmp_path: Path, without: bool
) -> None:
    """Condition 1 of carry/begin.h: copied_seq."""
    edits = [ALTERNATES, UNREAD_TCP] if without else [ALTERNATES]
    with generation_of(edits, bpffs, cgroup, tmp_path, learn=False) as generation:
        assert processes.run(swapped, cgroup=cgroup) == without
        assert generation.counters()["redirected_messages"] > 0


def bursts_get_stuck() -> bool:
    """Whether a reader on edges misses what TCP brought behind redirected data."""
    with listen() as listener:
        both = connect(listener)
    both.server.setblocking(False)
    stream = Stream()
    with select.epoll() as epoll:
        epoll.register(both.server, select.EPOLLIN | select.EPOLLET)
        for number in range(times(300)):
            for part in range(4):
                both.client.sendall(pattern(400 * number + 100 * part, 100))
            while stream.position < 400 * (number + 1):
                if not epoll.poll(1.0 * PATIENCE):
                    return True
                stream.feed(both.server.recv(MIB))  # less than asked for: drained
    return False


@pytest.mark.parametrize("without", [False, True], ids=["with", "without"])
def test_nothing_redirected_is_unread(
    cgroup: Path, bpffs: Path, tmp_path: Path, without: bool
) -> None:
    """may_pause() in carry/begin.h: no reader takes a border for the end of the data."""
    edits = [ALTERNATES, ANY_MOMENT] if without else [ALTERNATES]
    with generation_of(edits, bpffs, cgroup, tmp_path, learn=False) as generation:
        assert processes.run(bursts_get_stuck, cgroup=cgroup) == without
        assert generation.counters()["redirected_messages"] > 0
        assert generation.counters()["paused_revalidation"] > 0
