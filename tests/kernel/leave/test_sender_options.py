"""Options that rely on TCP's packets give plain results, and those that do not change nothing."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support import processes, textbook
from support.background import retiring
from support.options import Option, before_connect, on_listener, on_live
from support.processes import inside
from support.sender_options import OTHERS, SHOWING, SO_ATTACH_BPF, SO_MAX_PACING_RATE, pass_all
from support.traffic import connection, echo, set_linger

RETIRE_TIMEOUT_S = 20.0
IP_TOS, SO_BUSY_POLL, SO_MARK = 1, 46, 36
TCP_USER_TIMEOUT = 18
SECOND = struct.pack("qq", 1, 0)
MOMENTS = {"before connect": before_connect, "on the listener": on_listener}


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("option", [*SHOWING.values(), *OTHERS.values()], ids=[*SHOWING, *OTHERS])
def test_on_a_live_connection(
    cgroup: Path, generation: Generation, option: Option, side: str
) -> None:
    plain = processes.run(on_live, option, side)
    with retiring(generation):
        seen = processes.run(on_live, option, side, cgroup=cgroup)
    counters = generation.counters()
    assert seen == plain
    assert counters["accelerated_connections"] == 1
    assert counters["redirected_messages"] == 10


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("option", [*SHOWING.values(), *OTHERS.values()], ids=[*SHOWING, *OTHERS])
def test_set_before(cgroup: Path, generation: Generation, option: Option, moment: str) -> None:
    plain = processes.run(MOMENTS[moment], option)
    assert processes.run(MOMENTS[moment], option, cgroup=cgroup) == plain
    counters = generation.counters()
    assert counters["declined_option"] == 1
    assert counters["redirected_messages"] == 0


def test_the_textbook_differs(cgroup: Path, bpffs: Path) -> None:
    """The comparison above does tell a sockhash from TCP."""
    different = set()
    with textbook.attached(bpffs / "textbook-sender-options", cgroup):
        for name, option in SHOWING.items():
            plain = processes.run(on_live, option, "client")
            if processes.run(on_live, option, "client", cgroup=cgroup) != plain:
                different.add(name)
    assert different == {*SHOWING}


@inside()
def test_a_program_as_filter(cgroup: Path, generation: Generation) -> None:
    fd = pass_all()
    with connection() as both:
        echo(both, 5)
        both.server.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, fd)
        os.close(fd)
        echo(both, 5)
        assert generation.members.retire(RETIRE_TIMEOUT_S, lambda walked: walked.entries == 0)
    assert generation.counters()["redirected_messages"] == 10
    assert generation.counters()["retired_option"] == 1


@inside()
def test_what_changes_nothing(cgroup: Path, generation: Generation) -> None:
    """Options that programs set all the time, and values that ask for nothing."""
    tcp, sol = socket.IPPROTO_TCP, socket.SOL_SOCKET
    harmless: list[tuple[int, int, int | bytes]] = [
        (tcp, socket.TCP_NODELAY, 1),
        (tcp, socket.TCP_NODELAY, 0),
        (tcp, socket.TCP_CORK, 1),
        (tcp, socket.TCP_CORK, 0),
        (tcp, socket.TCP_QUICKACK, 1),
        (tcp, socket.TCP_KEEPIDLE, 60),
        (tcp, socket.TCP_KEEPINTVL, 10),
        (tcp, socket.TCP_KEEPCNT, 3),
        (tcp, socket.TCP_SYNCNT, 3),
        (tcp, socket.TCP_LINGER2, 10),
        (tcp, socket.TCP_NOTSENT_LOWAT, 1 << 20),
        (tcp, socket.TCP_WINDOW_CLAMP, 1 << 20),
        (tcp, socket.TCP_CONGESTION, b"cubic"),
        (tcp, TCP_USER_TIMEOUT, 0),
        (sol, socket.SO_KEEPALIVE, 1),
        (sol, socket.SO_REUSEADDR, 1),
        (sol, socket.SO_SNDBUF, 1 << 20),
        (sol, socket.SO_RCVBUF, 1 << 20),
        (sol, socket.SO_PRIORITY, 3),
        (sol, socket.SO_SNDTIMEO, SECOND),
        (sol, socket.SO_RCVTIMEO, SECOND),
        (sol, SO_BUSY_POLL, 50),
        (sol, SO_MARK, 7),
        (sol, SO_MAX_PACING_RATE, -1),
        (sol, SO_MAX_PACING_RATE, b"\xff" * 8),
        (sol, socket.SO_LINGER, struct.pack("ii", 0, 5)),
        (socket.IPPROTO_IP, IP_TOS, 16),
    ]
    with connection() as both:
        echo(both, 5)
        for end in (both.client, both.server):
            for option in harmless:
                end.setsockopt(*option)
            set_linger(end, 0)
        echo(both, 5)
        generation.members.walk()
        assert generation.members.walk().connections == 1
        assert generation.counters()["redirected_messages"] == 20
