"""Directions that go to TCP and come back all the time: every byte in order, nobody stuck (I1, I2).

The attacked build goes to TCP at one quiet point in eight. Others lack one condition each of
carry/begin.h, and are seen corrupting the same traffic.
"""

from __future__ import annotations

import os
import random
import select
import socket
import time
from pathlib import Path

import pytest

from support import processes
from support.background import Background
from support.edited import Edit, generation_of
from support.emulated import PATIENCE, times
from support.traffic import Connection, Corrupted, Stream, connect, listen, pattern

KIB, MIB = 1 << 10, 1 << 20
SECONDS = 60.0 if "SOCKREDIR_TORTURE" in os.environ else 6.0
SIZES = (1, 64, 1000, 4 * KIB, 64 * KIB, 256 * KIB)
MOST_AHEAD = 512 * KIB
STUCK_S = 10 * PATIENCE
ALTERNATES: Edit = (
    "carry/redirect.c",
    "	__u64 now = bpf_jiffies64(), psock;\n	struct tcp_sock *tp;\n	enum cause cause;\n",
    "	__u64 now = bpf_jiffies64(), psock;\n	struct tcp_sock *tp;\n	enum cause cause;\n\n"
    "	if (!(bpf_get_prandom_u32() & 7) && may_pause(sk, st)) {\n"
    "		pause(st, CAUSE_REVALIDATION);\n		return 1;\n	}\n",
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


def read_edges(sock: socket.socket, size: int, stream: Stream, seed: int) -> None:
    """Reads on edges, and takes a short read for the end of the data."""
    dice = random.Random(seed)
    sock.setblocking(False)
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN | select.EPOLLET)
        end = stream.position + size
        while stream.position < end:
            assert epoll.poll(STUCK_S), f"stuck at byte {stream.position} of {end}"
            while stream.position < end:
                wanted = dice.choice((512, 16 * KIB, MIB))
                try:
                    data = sock.recv(wanted)
                except BlockingIOError:
                    break
                stream.feed(data)
                if len(data) < wanted:
                    break
    sock.setblocking(True)


def attack(seed: int, seconds: float) -> int:
    """Bursts in both directions for a while; how many bytes."""
    total, dice = 0, random.Random(seed)
    with listen() as listener:
        both = connect(listener)
    streams = {True: Stream(), False: Stream()}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        forth = dice.random() < 0.5
        ends = both if forth else Connection(both.server, both.client)
        size = dice.choice((1, 100, 10 * KIB, MOST_AHEAD))
        stream = streams[forth]
        start = stream.position
        sender = Background(send_from, ends.client, start, size, dice.random())
        read_edges(ends.server, size, stream, dice.randrange(1 << 30))
        sender.join(STUCK_S)
        total += size
    both.close()
    return total


def send_from(sock: socket.socket, start: int, size: int, seed: float) -> None:
    dice = random.Random(seed)
    position = start
    while position < start + size:
        length = min(dice.choice(SIZES), start + size - position)
        sock.sendall(pattern(position, length))
        position += length


def test_order_while_it_alternates(cgroup: Path, bpffs: Path, tmp_path: Path) -> None:
    with generation_of([ALTERNATES], bpffs, cgroup, tmp_path, learn=False) as generation:
        total = sum(
            processes.run(attack, seed, SECONDS / 3, cgroup=cgroup, timeout=SECONDS + 60)
            for seed in range(3)
        )
        counters = generation.counters()
    print(f"{total / MIB:.0f} MiB, {counters['paused_revalidation']} times to TCP")
    assert counters["paused_revalidation"] >= times(100)
    assert counters["redirected_messages"] >= counters["paused_revalidation"]


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
