"""A program splices although redirected data is unread: what follows must not go by TCP.

splice(2) takes TCP's data only, so it would overtake what is unread. Here an option of
setsockopt(2) stands for the call, which takes ftrace to be seen; guests try the call itself, see
tests/vm/guest/typed/test_random_moment.py.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from support.edited import Edit, generation_of
from support.processes import inside
from support.traffic import connection, echo

SPLICES: tuple[Edit, ...] = (
    (
        "leave/guard.c",
        "return *value > 1 || *value < 0 ? CAUSE_RCVLOWAT : 0;",
        "return CAUSE_SPLICE;",
    ),
    (
        "leave/guard.c",
        "		refuse(st, reason);\n",
        "{		WRITE_ONCE(st->reset_at, now_ms() | 1);\n		refuse(st, reason);\n}",
    ),
)
OVERTAKES: Edit = (
    "carry/redirect.c",
    "behind = would_be_overtaken(sk, st);",
    "behind = 0;",
)


def splice(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


@pytest.mark.parametrize("without", [False, True], ids=["with", "without"])
@inside()
def test_what_follows_is_redirected_as_well(
    cgroup: Path, bpffs: Path, tmp_path: Path, without: bool
) -> None:
    edits = [*SPLICES, *([OVERTAKES] if without else [])]
    made = generation_of(edits, bpffs, cgroup, tmp_path, learn=False)
    with made as generation, connection() as both:
        echo(both, 3)
        both.client.sendall(b"unread")
        splice(both.server)
        before = generation.counters()["redirected_messages"]
        for _ in range(5):
            both.client.sendall(b"behind")
            generation.members.walk()
        after = generation.counters()["redirected_messages"]
        assert after - before == (0 if without else 5)
        (_flow, side), *_none = generation.members.walk().broken
        assert side == 1  # the server's
        assert both.server.recv(100) == b"unread" + b"behind" * (0 if without else 5)


@inside()
def test_with_nothing_unread_it_goes_to_tcp(cgroup: Path, bpffs: Path, tmp_path: Path) -> None:
    made = generation_of(SPLICES, bpffs, cgroup, tmp_path, learn=False)
    with made as generation, connection() as both:
        echo(both, 3)
        splice(both.server)
        before = generation.counters()["redirected_messages"]
        both.client.sendall(b"by TCP")
        assert both.server.recv(100) == b"by TCP"
        assert generation.counters()["redirected_messages"] == before
        assert not generation.members.walk().broken
