"""Others who put the same sockets on sockmaps of theirs keep them, and what they do with them."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sockredird.datapath.generation import Generation
from support import kernel_echo, textbook
from support.datapath import Datapath, plan, tear_down
from support.processes import inside
from support.traffic import connection, echo, pattern, read_exactly


@contextmanager
def ours(root: Path, cgroup: Path) -> Iterator[Generation]:
    generation = Generation.create(root, 1, plan(cgroup))
    try:
        yield generation
    finally:
        tear_down(generation.directory)
        root.rmdir()


@inside()
def test_theirs_was_attached_first(cgroup: Path, bpffs: Path) -> None:
    """A psock takes one sk_msg program: they insert before us, so they have all sockets."""
    with (
        textbook.attached(bpffs / "textbook-first", cgroup),
        ours(bpffs / "ours-second", cgroup) as generation,
        connection() as both,
    ):
        echo(both, 100)
        assert generation.members.walk().entries == 0
        counters = {name: value for name, value in generation.counters().items() if value}
        assert counters == {"declined_other_sockmap": 1}


@inside()
def test_ours_was_attached_first(cgroup: Path, bpffs: Path) -> None:
    with (
        ours(bpffs / "ours-first", cgroup) as generation,
        textbook.attached(bpffs / "textbook-second", cgroup),
        connection() as both,
    ):
        echo(both, 100)
        assert generation.members.walk().connections == 1
        assert generation.counters()["redirected_messages"] == 200


def who_gets(client: socket.socket, server: socket.socket, data: bytes) -> socket.socket:
    """Sends to the server, and sees whether its program gets it, or the client an answer."""
    client.sendall(data)
    (reader, *_), _, _ = select.select([client, server], [], [], 10)
    assert read_exactly(reader, len(data)) == data
    return reader


def kernel_echoes(bpffs: Path, before: int) -> tuple[bool, bool]:
    """Whether a server's sk_skb program sees what comes in, after `before` messages without it."""
    directory = bpffs / "kernel-echo"
    with kernel_echo.attached(directory), connection() as both:
        echo(both, before)
        kernel_echo.take(directory, both.server)
        readers = [who_gets(both.client, both.server, pattern(0, 100)) for _ in range(1000)]
        return readers[0] is both.client, readers[-1] is both.client


@inside()
def test_sk_skb_program_of_a_proxy(datapath: Datapath, bpffs: Path, cgroup: Path) -> None:
    """A message that bypasses TCP would never reach it. It comes before the first message."""
    seen = not datapath.is_textbook
    assert kernel_echoes(bpffs, 0) == (seen, seen)


@inside()
def test_sk_skb_program_that_comes_late(datapath: Datapath, bpffs: Path, cgroup: Path) -> None:
    """Noticed at the next look at the peer's queue, 256 messages at the most."""
    assert kernel_echoes(bpffs, 5) == (False, not datapath.is_textbook)
