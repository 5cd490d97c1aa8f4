"""A recv() that blocks since before Disable blocks on, whatever else wakes it.

tcp_bpf_recvmsg() waits once and answers EAGAIN if it was woken for nothing, which tcp_recvmsg()
never does. A strict xfail: known, seen by programs, and to be noticed when it changes. Readers of
accelerated connections: tests/kernel/conformance/interrupting.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support.background import Background
from support.processes import inside
from support.traffic import Connection, Stream, connection, echo, pattern

MIB = 1 << 20
ENOUGH_TO_BLOCK = 32 * MIB
known = pytest.mark.xfail(
    strict=True, reason="tcp_bpf_recvmsg() returns EAGAIN when woken for nothing"
)


def block_and_resume_a_sender(both: Connection) -> None:
    """The client's other thread runs out of room; getting some wakes all who wait on the socket."""
    sender = Background(both.client.sendall, pattern(0, ENOUGH_TO_BLOCK))
    sender.wait_in_kernel()
    Stream().read(both.server, ENOUGH_TO_BLOCK)
    sender.join(10)


def check_reader_beside_a_sender(both: Connection) -> None:
    reader = Background(both.client.recv, 1)
    reader.wait_in_kernel()
    block_and_resume_a_sender(both)
    both.server.sendall(b"x")
    assert reader.join(10) == b"x"


@known
@inside()
def test_a_reader_since_before_disable(cgroup: Path, generation: Generation) -> None:
    with connection() as both:
        echo(both, 1)
        reader = Background(both.client.recv, 1)
        reader.wait_in_kernel()
        generation.stop()
        assert generation.members.retire(10, lambda walked: walked.entries == 0)
        block_and_resume_a_sender(both)
        both.server.sendall(b"x")
        assert reader.join(10) == b"x"
