"""Memory for sockets is short: nobody sees an error that TCP would not have given, or stands still.

Beyond a limit sk_msg_alloc() and bpf_tcp_ingress() fail with ENOMEM, where TCP waits, and has one
buffer of each socket in any case. The textbook shows it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection as Channel
from pathlib import Path
from typing import Any

import pytest

from sockredird.datapath.generation import Generation
from support import cgroups, processes, textbook
from support.background import retiring
from support.child import Child
from support.datapath import Datapath
from support.emulated import PATIENCE
from support.memory import MEMORY, SOCKETS, memory_cgroup
from support.traffic import Connection, connect, listen, pattern

KIB, MIB = 1 << 10, 1 << 20
LIMIT = MIB
CHUNK = 16 * KIB
ATTEMPTS = 2000  # 32 MiB
SEND_TIMEOUT_S = 1
BYSTANDING_S = 1.0 * PATIENCE
ROUND = 1000

limits_sockets = pytest.mark.skipif(
    not (MEMORY / SOCKETS).exists(),
    reason="no cgroup v1 memory controller: no limit of sockets alone",
)
# tcp_mem is the whole host's: in guests, and where somebody says that nobody else is there
whole_host = pytest.mark.skipif(
    "SOCKREDIR_WHOLE_HOST" not in os.environ,
    reason="lowers net.ipv4.tcp_mem for all of the host (SOCKREDIR_WHOLE_HOST)",
)


def name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, repr(error))


def push(sock: socket.socket) -> tuple[int, str]:
    """Sends until an error, or a send() that takes no more; how much, and what ended it."""
    sent = 0
    try:
        for _ in range(ATTEMPTS):
            sent += sock.send(pattern(sent, CHUNK))
    except OSError as error:
        return sent, name_of(error)
    return sent, ""


def read_all(sock: socket.socket, size: int) -> bool:
    """Whether the test stream arrives, as a program reads that polls."""
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    got = 0
    while got < size and poll.poll(5000 * PATIENCE):
        with suppress(BlockingIOError):
            data = sock.recv(64 * KIB)
            if data != pattern(got, len(data)):
                return False
            got += len(data)
    return got == size


def stalled_reader(memory: Path, blocking: bool, turned: bool) -> list[Any]:
    """What a sender sees whose reader does not read, and both after it does."""
    (memory / "cgroup.procs").write_text(str(os.getpid()))
    with listen() as listener:
        both = connect(listener)
    if turned:
        both = Connection(both.server, both.client)
    try:
        both.client.sendall(pattern(0, 100))
        started = read_all(both.server, 100)
        if blocking:
            timeout = struct.pack("qq", SEND_TIMEOUT_S, 0)
            both.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        else:
            both.client.setblocking(False)
        sent, ended = push(both.client)
        arrived = read_all(both.server, sent)
        afterwards = both.client.send(b"y" * 1000)
        return [started, ended, 0 < sent < ATTEMPTS * CHUNK, arrived, afterwards]
    finally:
        both.close()
        (MEMORY / "cgroup.procs").write_text(str(os.getpid()))


@limits_sockets
def test_the_textbook_fails(cgroup: Path, bpffs: Path) -> None:
    with (
        textbook.attached(bpffs / "textbook-limits", cgroup),
        memory_cgroup(SOCKETS, LIMIT) as memory,
    ):
        seen = processes.run(stalled_reader, memory, False, False, cgroup=cgroup)
        assert seen[1] == "ENOMEM"


@limits_sockets
@pytest.mark.parametrize("turned", [False, True], ids=["client sends", "server sends"])
@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("limit", [LIMIT // 4, LIMIT, 4 * LIMIT], ids=["256K", "1M", "4M"])
def test_a_limit_of_sockets(
    cgroup: Path, generation: Generation, limit: int, blocking: bool, turned: bool
) -> None:
    with memory_cgroup(SOCKETS, limit) as memory:
        plain = processes.run(stalled_reader, memory, blocking, turned)
        assert plain == [True, "EAGAIN", True, True, 1000]
        seen = processes.run(stalled_reader, memory, blocking, turned, cgroup=cgroup)
        assert seen == plain
    assert generation.counters()["accelerated_connections"] == 1
    assert generation.counters()["redirected_messages"] > 0


def hold(channel: Channel, connections: int, size: int) -> None:
    """A neighbour that takes all memory there is."""
    kept = []
    channel.recv()
    with listen() as listener:
        for _ in range(connections):
            both = connect(listener)
            both.client.setblocking(False)
            with suppress(OSError):
                for _ in range(size // (64 * KIB)):
                    both.client.send(bytes(64 * KIB))
            kept.append(both)
    channel.send("full")
    channel.recv()


def rounds(both: Connection) -> tuple[int, list[str]]:
    """Requests and answers of one connection for a while; how many, and which errors."""
    for end in (both.client, both.server):
        end.settimeout(3)
    done, errors = 0, []
    end_time = time.monotonic() + BYSTANDING_S
    while time.monotonic() < end_time:
        try:
            both.client.sendall(b"x" * ROUND)
            got = 0
            while got < ROUND:
                got += len(both.server.recv(64 * KIB))
            both.server.sendall(b"y")
            both.client.recv(1)
            done += 1
        except OSError as error:
            errors.append(name_of(error))
            break
    return done, errors


def bystander(
    memory: Path | None, cgroup: Path | None, hog_inside: bool, made_before: bool = True
) -> tuple[int, list[str]]:
    """The rounds of a connection beside a hog, which is accelerated, or not."""
    if memory is not None:
        (memory / "cgroup.procs").write_text(str(os.getpid()))
    if cgroup is not None and hog_inside:
        cgroups.join(cgroup)
    with ExitStack() as stack:
        hog = stack.enter_context(Child(hold, 60, 4 * MIB))
        if cgroup is not None and not hog_inside:
            cgroups.join(cgroup)
        listener = stack.enter_context(listen())
        both = used(listener) if made_before else None
        hog.channel.send("fill")
        assert hog.channel.recv() == "full"
        both = both or used(listener)
        seen = rounds(both)
        both.close()
        hog.channel.send("end")
        hog.wait()
    if memory is not None:
        (MEMORY / "cgroup.procs").write_text(str(os.getpid()))
    return seen


def used(listener: socket.socket) -> Connection:
    both = connect(listener)
    for _ in range(10):
        both.client.sendall(b"x")
        both.server.recv(1)
    return both


def check_bystander(run: Callable[[Path | None], tuple[int, list[str]]], cgroup: Path) -> None:
    """`run` gives the rounds in a cgroup, or on plain TCP: at least half as many, and no errors.

    What else the machine does between the two weighs more than acceleration, so one time of three
    has to show it.
    """
    for _ in range(3):
        plain, seen = run(None), run(cgroup)
        print(f"rounds: {seen[0]}, with plain TCP {plain[0]}")
        assert plain[1] == seen[1] == []
        if seen[0] >= plain[0] / 2:
            return
    raise AssertionError("fewer than half of TCP's rounds")


@limits_sockets
@pytest.mark.parametrize("made_before", [True, False], ids=["old", "new"])
@pytest.mark.parametrize("hog_inside", [True, False], ids=["accelerated hog", "plain hog"])
def test_bystanders_in_a_limited_cgroup(
    cgroup: Path, generation: Generation, hog_inside: bool, made_before: bool
) -> None:
    with memory_cgroup(SOCKETS, 8 * MIB) as memory, retiring(generation):
        check_bystander(
            lambda place: processes.run(bystander, memory, place, hog_inside, made_before), cgroup
        )
    counters = generation.counters()
    if made_before:
        assert counters["redirected_messages"] >= 10
        assert counters["retired_pressure"] >= 1
    else:
        assert counters["declined_pressure"] >= 1


@contextmanager
def tcp_mem(pages: int) -> Iterator[None]:
    """All of TCP has that many pages more than it uses now."""
    setting = Path("/proc/sys/net/ipv4/tcp_mem")
    before = setting.read_text()
    words = next(
        line for line in Path("/proc/net/sockstat").read_text().splitlines() if line[:4] == "TCP:"
    ).split()
    used = int(words[words.index("mem") + 1])
    setting.write_text(f"{used + pages // 2} {used + pages // 4 * 3} {used + pages}")
    try:
        yield
    finally:
        setting.write_text(before)


@whole_host
def test_bystanders_under_tcp_mem(cgroup: Path, datapath: Datapath) -> None:
    with ExitStack() as stack:
        stack.enter_context(tcp_mem(4096))
        if datapath.generation is not None:
            stack.enter_context(retiring(datapath.generation))
        if datapath.generation is None:
            plain, seen = (processes.run(bystander, None, place, True) for place in (None, cgroup))
            assert seen[1] or seen[0] < plain[0] / 2
            return
        check_bystander(lambda place: processes.run(bystander, None, place, True), cgroup)
    assert datapath.generation.counters()["redirected_messages"] >= 10
