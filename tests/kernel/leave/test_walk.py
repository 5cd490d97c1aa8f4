"""A walk counts each end on the sockhash once, however many lines the kernel writes for it."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from sockredird.loader.header import record
from support.edited import Edit, generation_of
from support.processes import inside
from support.traffic import Connection, connect, listen, many_descriptors

STAYING, LEAVING, TRIES = 100, 400, 20
READ_BYTES = 32768  # of an iterator's output at a time (bpf_seq_read(), kernel/bpf/bpf_iter.c)
AGAIN: Edit = ("leave/walk.c", "	if (st->walk == w->number)\n		return;\n", "")


def talk(both: Connection) -> None:
    both.client.send(b"x")
    both.server.send(both.server.recv(1))
    both.client.recv(1)


def counted(generation: Generation) -> set[tuple[int, int, int]]:
    """What walks count where pairs with unread data have to leave: ends, connections, and those."""
    with ExitStack() as stack:
        listener = stack.enter_context(listen())
        for number in range(STAYING + LEAVING):
            both = connect(listener)
            stack.callback(both.close)
            talk(both)
            if number % (1 + LEAVING // STAYING):
                both.client.send(b"unread")
                both.client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        generation.members.walk()  # an end that it meets before the client's does not leave yet
        walks = [generation.members.walk() for _ in range(5)]
        return {(found.entries, found.connections, found.leaving) for found in walks}


@pytest.mark.usefixtures("map_iterators")  # without them, all lines of a run have room
@pytest.mark.parametrize("edits", [(), (AGAIN,)], ids=["ours", "all visits count"])
@inside()
def test_more_lines_than_one_read(
    cgroup: Path, bpffs: Path, tmp_path: Path, edits: tuple[Edit, ...]
) -> None:
    """Lines of LEAVING pairs stop the kernel, four times in ten in the middle of a bucket."""
    assert 2 * LEAVING * record("member").size > READ_BYTES
    limit = STAYING + LEAVING  # so that there are as many buckets as ends
    exact = {(2 * (STAYING + LEAVING), STAYING, 2 * LEAVING)}
    many_descriptors()
    with generation_of(edits, bpffs, cgroup, tmp_path, max_connections=limit) as generation:
        same = all(counted(generation) == exact for _ in range(TRIES))
    assert same == (not edits)
