"""Visiting members by test runs, as where the kernel permits no iterator over a map.

The edit has a kernel that does permit one do without, so that this is tried on every kernel.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from sockredird.datapath import visits
from sockredird.datapath.generation import Generation
from sockredird.kernel import libbpf
from sockredird.kernel.uapi import MapType
from sockredird.loader.header import constant, record
from support import pins
from support.edited import Edit, generation_of
from support.processes import inside
from support.traffic import Connection, connect, listen

WITHOUT_ITERATOR: list[Edit] = [
    (
        "../loader/shapes.py",
        '_tracing("sockredir_walk", AttachType.TRACE_ITER, "bpf_iter_sockmap")',
        'ProgramShape("sockredir_visit", ProgType.SCHED_CLS)',
    )
]
CONNECTIONS = 200  # the ends are more than three runs visit
assert 3 * constant("VISITS") < 2 * CONNECTIONS


def talk(both: Connection) -> None:
    for _ in range(3):
        both.client.send(b"question")
        assert both.server.recv(100) == b"question"
        both.server.send(b"answer")
        assert both.client.recv(100) == b"answer"


def all_leave(generation: Generation, patience_s: float) -> bool:
    generation.stop()
    return generation.members.retire(patience_s, lambda walked: walked.entries == 0)


@inside()
def test_members_are_listed_counted_and_leave(cgroup: Path, bpffs: Path, tmp_path: Path) -> None:
    with (
        generation_of(WITHOUT_ITERATOR, bpffs, cgroup, tmp_path) as generation,
        ExitStack() as stack,
    ):
        assert not (generation.directory / visits.MEMBERS).exists()
        listener = stack.enter_context(listen())
        connections = [connect(listener) for _ in range(CONNECTIONS)]
        for both in connections:
            stack.callback(both.close)
            talk(both)
        assert generation.counters()["redirected_messages"] >= 5 * CONNECTIONS
        listed = [
            line
            for chunk in generation.connections()
            for line in record("connection").iter_unpack(chunk)
        ]
        ports = {both.client.getsockname()[1] for both in connections}
        assert sorted(line.flow.client_port for line in listed) == sorted(ports)
        walked = generation.members.walk()
        assert (walked.entries, walked.connections) == (2 * CONNECTIONS, CONNECTIONS)
        # one that a guard refuses leaves alone, with its data
        both = connections[7]
        both.client.send(b"unread")
        both.client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        generation.members.walk()  # may meet the other end first
        walked = generation.members.walk()
        assert (walked.entries, walked.leaving) == (2 * CONNECTIONS, 2)
        assert both.server.recv(100) == b"unread"
        assert generation.members.retire(10, lambda walked: walked.leaving == 0)
        assert generation.members.walk().entries == 2 * CONNECTIONS - 2
        both = connections[8]
        both.client.send(b"unread")
        assert not all_leave(generation, 0.5)
        assert both.server.recv(100) == b"unread"
        assert all_leave(generation, 10)
        for both in connections:
            talk(both)


def test_keys_while_they_are_deleted() -> None:
    """Behind each deleted key the kernel begins again; all others are met, and once."""
    size, count = 4, 2000
    with pins.new_map(MapType.HASH, "changing", size, 4, count) as fd:
        numbers = [number.to_bytes(size, "little") for number in range(count)]
        for key in numbers:
            libbpf.update(fd, key, bytes(4))
        met: list[bytes] = []
        deleted: set[bytes] = set()
        for key in libbpf.each_key(fd, size):
            met.append(key)
            if len(met) % 3 == 0:
                for old in met[-2:]:
                    libbpf.delete(fd, old)
                    deleted.add(old)
        assert len(met) == len(set(met))
        assert set(met) == set(numbers)
        # the oracle: the kernel alone, asked for what follows a deleted key
        following = libbpf.keys(fd, size)
        assert set(following) == set(numbers) - deleted
