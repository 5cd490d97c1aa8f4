"""What each condition for beginning and leaving is there for: without it, this goes wrong.

The rule is in docs/architecture/invariants.md (I1, I2) and docs/architecture/leaving.md. Each test
runs with the condition, and with a build that lacks it; test_alternation.py has those that show in
random traffic.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection as Channel
from pathlib import Path
from typing import Any

import pytest

from kernel.carry.attacks import ask, set_sequence
from sockredird.datapath.generation import Generation
from sockredird.datapath.pairs import Pair
from support.alternation import ALTERNATES, NO_LOOK_AT_THE_LOCK
from support.background import Background, retiring
from support.child import Child
from support.edited import Edit, generation_of
from support.emulated import PATIENCE, times
from support.kernel_facts import FIONREAD_OMITS_TCP
from support.processes import inside
from support.slow_memory import SlowMemory
from support.traffic import (
    Connection,
    connect,
    connection,
    disconnect,
    echo,
    listen,
    pattern,
    read_exactly,
    set_nodelay,
)
from support.waiting import eventually

KIB, MIB = 1 << 10, 1 << 20
STUCK_S = 2.0 * PATIENCE
both_ways = pytest.mark.parametrize("without", [False, True], ids=["with", "without"])

ANY_STATE: Edit = (
    "carry/redirect.c",
    "if (sk->state != BPF_TCP_ESTABLISHED && sk->state != BPF_TCP_CLOSE_WAIT)",
    "if (0)",
)
# as if the FIN were still on its way to the peer
PEER_NOT_SEEN: Edit = (
    "carry/redirect.c",
    "if (!cause && kernel_shutdown(st->peer_sk))",
    "if (!cause && 0)",
)
ONE_WAY: Edit = (
    "carry/begin.h",
    "copied != own_write_seq(tp) ||\n	    own_rcv_nxt(tp) != kernel_write_seq(peer)",
    "copied != own_write_seq(tp)",
)
ANYBODY: Edit = ("carry/begin.h", "return nobody_in_tcp_recvmsg(peer, st, copied);", "return 1;")
AT_ONCE: Edit = ("pair/join.c", "	st->awaits = AWAITS_MESSAGE;\n", "")
IN_FLIGHT: Edit = (
    "leave/walk.c",
    "	if (!none_in_flight(sk, sender, st))\n		return 0;\n",
    "",
)
STAYS: Edit = (
    "leave/half_closed.h",
    "	peers.delete(&self);\n	sockets.sk_storage_delete(sk);\n",
    "",
)
SILENT: Edit = (
    "leave/rewake.c",
    "return has_tcp_data(sk) && !unread_left.update(end, &one);",
    "return one == 0;",
)
STAYS_AT_BORDER: Edit = ("leave/walk.c", "	if (stays_at_border(st))", "	if (0)")
SENDING: Edit = ("leave/walk.c", "if (!idle_sender(sk, st) || ", "if (")
# A message that goes by TCP takes its time between the program and TCP's queue.
DAWDLES: Edit = (
    "carry/redirect.c",
    "		pause(st, CAUSE_REVALIDATION);\n		return 1;\n	}\n",  # of ALTERNATES
    "		pause(st, CAUSE_REVALIDATION);\n"
    "		for (int i = 0; i < 20000; i++)\n			bpf_ktime_get_ns();\n"
    "		return 1;\n	}\n",
)


@dataclass
class Build:
    """Makes generations of one C, over the cgroup of the test."""

    bpffs: Path
    cgroup: Path
    directory: Path

    def of(self, *edits: Edit, **settings: Any) -> Any:
        settings = {"learn": False, **settings}
        return generation_of(edits, self.bpffs, self.cgroup, self.directory, **settings)


@pytest.fixture
def build(bpffs: Path, cgroup: Path, tmp_path: Path) -> Build:
    return Build(bpffs, cgroup, tmp_path)


def chosen(without: bool, *edits: Edit) -> Sequence[Edit]:
    return edits if without else ()


# -- 1: the state, and that the two are one connection ---------------------------------------


@both_ways
@inside()
def test_nothing_follows_the_end(cgroup: Path, build: Build, without: bool) -> None:
    """send() after shutdown(SHUT_WR) fails, though the socket stays for what it has not read."""
    edits = [PEER_NOT_SEEN, *chosen(without, ANY_STATE)]
    with build.of(*edits) as generation, connection() as both:
        echo(both, 10)
        both.server.sendall(b"unread")
        both.client.shutdown(socket.SHUT_WR)
        assert generation.members.walk().entries > 0
        sent = 0
        with suppress(BrokenPipeError):
            sent = both.client.send(b"more")
        assert (sent > 0) == without


def sequence_connection(number: int) -> Connection:
    with listen() as listener:
        client = socket.socket()
        set_sequence(client, number)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    for end in (client, server):
        set_nodelay(end)
    return Connection(client, server)


def candidate(generation: Generation, sock: socket.socket) -> Any:
    ends = sock.getsockname()[1], sock.getpeername()[1]
    return next(
        c
        for c in generation.candidates()
        if not c.listens and (c.local_port, c.remote_port) == ends
    )


def proposed(generation: Generation, both: Connection) -> Pair:
    """A connection that was made before, used so that it counts as active."""
    echo(both, 1)
    return Pair(candidate(generation, both.client), candidate(generation, both.server))


@both_ways
@inside()
def test_the_ends_of_two_connections(cgroup: Path, build: Build, without: bool) -> None:
    """Two connections have the same numbers in one direction, and a wrong pair is joined."""
    one, other = sequence_connection(1_000_000), sequence_connection(1_000_000)
    sent = b""
    with build.of(*chosen(without, ONE_WAY)) as generation:
        for number in range(times(10)):
            data = b"%099d" % number
            sent += data
            one.client.sendall(data)
            if number == 0:
                assert read_exactly(one.server, 99) == data
            other.client.sendall(b"x" * 99)
            other.server.recv(99)
            one.server.sendall(b"a")  # so that the ends count as active
            other.server.sendall(b"b")
            if number == 0:
                ends = candidate(generation, one.client), candidate(generation, other.server)
                assert generation.members.join([Pair(*ends)]) == [None]
        one.server.setblocking(False)
        seen = sent[:99]
        deadline = time.monotonic() + STUCK_S
        while len(seen) < len(sent) and time.monotonic() < deadline:
            with suppress(BlockingIOError):
                seen += one.server.recv(MIB)
        assert (seen == sent) != without
        assert (generation.counters()["redirected_messages"] > 0) == without
        for end in (one.client, one.server, other.client, other.server):
            end.close()


# -- 2: nobody in TCP's own receive code -----------------------------------------------------


def read_eight(sock: socket.socket, seen: list[bytes]) -> None:
    while sum(map(len, seen)) < 8:
        seen.append(sock.recv(8 - sum(map(len, seen)), socket.MSG_WAITALL))


@both_ways
@inside()
def test_a_reader_sleeps_in_tcp_recvmsg(cgroup: Path, build: Build, without: bool) -> None:
    """MSG_WAITALL took what went by TCP, and waits there for the rest, which is redirected."""
    stuck = False
    with build.of(ALTERNATES, *chosen(without, ANYBODY)) as generation, connection() as both:
        for _ in range(times(200)):
            seen: list[bytes] = []
            both.client.sendall(b"1234")
            reader = Background(read_eight, both.server, seen)
            reader.wait_in_kernel()
            both.client.sendall(b"5678")
            try:
                reader.join(STUCK_S)
            except TimeoutError:
                stuck = True
                both.client.close()
                break
            assert b"".join(seen) == b"12345678"
        assert generation.counters()["redirected_messages"] > 0
    assert stuck == without


def hold_processor(channel: Channel, processor: int) -> None:
    """No thread of an ordinary priority runs there, for less than the kernel's limit for this."""
    os.sched_setaffinity(0, {processor})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    channel.send("running")
    end = time.monotonic() + 0.7
    while time.monotonic() < end and not channel.poll(0):
        pass
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def read_on(processor: int, sock: socket.socket, threads: list[int]) -> bytes:
    os.sched_setaffinity(0, {processor})
    threads.append(int(Path("/proc/thread-self").readlink().name))
    return sock.recv(100)


def waits_for_lock(thread: int) -> bool:
    return "lock_sock" in Path(f"/proc/self/task/{thread}/wchan").read_text()


@pytest.mark.skipif(os.cpu_count() == 1, reason="somebody has to run meanwhile")
@both_ways
@inside()
def test_a_reader_waits_for_the_lock_as_its_socket_joins(
    cgroup: Path, build: Build, without: bool
) -> None:
    """Its recv() began on a native socket, and nothing shows it once the lock is free."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    both = sequence_connection(7)
    echo(both, 10)
    with build.of(*chosen(without, AT_ONCE)) as generation, SlowMemory(4 * KIB) as memory:
        os.sched_setaffinity(0, {first})
        pair = proposed(generation, both)
        holder = Background(both.server.send, memory.view)
        memory.wait_for_fault()
        threads: list[int] = []
        reader = Background(read_on, second, both.server, threads)
        eventually(lambda: bool(threads) and waits_for_lock(threads[0]), "it waits for the lock")
        assert generation.members.join([pair]) == [None]
        with Child(hold_processor, second) as spinner:
            assert spinner.channel.recv() == "running"
            memory.deliver()
            holder.join(STUCK_S)
            both.client.sendall(b"first")
            spinner.channel.send("enough")
            spinner.wait()
        stuck = False
        try:
            assert reader.join(STUCK_S) == b"first"
        except TimeoutError:
            stuck = True
        both.close()
    assert stuck == without


# -- 4, 5: a reader at a border --------------------------------------------------------------


def read_at_border(both: Connection, size: int) -> bool:
    """Whether a reader on edges, which takes a short read for the end, misses something."""
    both.server.setblocking(False)
    read = 0
    with select.epoll() as epoll:
        epoll.register(both.server, select.EPOLLIN | select.EPOLLET)
        while read < size:
            if not epoll.poll(STUCK_S):
                return True
            while True:
                data = both.server.recv(MIB)
                assert data == pattern(read, len(data))
                read += len(data)
                if len(data) < MIB:
                    break
    return False


@both_ways
@inside()
def test_who_is_forced_to_tcp_wakes_the_reader(cgroup: Path, build: Build, without: bool) -> None:
    """Behind what fills the window comes TCP data."""
    size = 60 * KIB  # the reader's buffer holds all of it, so nothing else wakes the reader
    with (
        build.of(*chosen(without, SILENT), window_bytes=32 * KIB) as generation,
        connection() as both,
        retiring(generation),
    ):
        echo(both, 10)
        for position in range(0, size, 10 * KIB):
            both.client.sendall(pattern(position, 10 * KIB))
        assert read_at_border(both, size) == without


@pytest.mark.skipif(not FIONREAD_OMITS_TCP, reason="FIONREAD counts TCP data on a member here")
@pytest.mark.parametrize("joined", [False, True], ids=["", "joined"])
@both_ways
@inside()
def test_who_asks_fionread_learns_of_tcp_data(
    cgroup: Path, build: Build, without: bool, joined: bool
) -> None:
    """A message by TCP makes a reader wait that reads when FIONREAD tells of it."""
    both = sequence_connection(7)
    echo(both, 10)
    edits = () if joined else (ALTERNATES,)
    with build.of(*edits, *chosen(without, STAYS_AT_BORDER)) as generation:
        if joined:
            assert generation.members.join([proposed(generation, both)]) == [None]
        else:
            both.close()
            with listen() as listener:
                both = connect(listener)
        with retiring(generation):
            stuck = any(not told_in_time(both) for _ in range(times(100)))
        both.close()
    assert stuck == without


@pytest.mark.skipif(not FIONREAD_OMITS_TCP, reason="FIONREAD counts TCP data on a member here")
@both_ways
@inside()
def test_a_message_under_way_is_not_taken_for_read(
    cgroup: Path, build: Build, without: bool
) -> None:
    """Walks meet it between the program and TCP's queue."""
    with build.of(ALTERNATES, DAWDLES, *chosen(without, SENDING)) as generation:
        overlooked = sum(overlooks(generation) for _ in range(times(20)))
    assert (overlooked > 0) == without


def overlooks(generation: Generation) -> int:
    """How many messages by TCP walks take for read, of a connection's first fifty messages."""
    found = 0
    with connection() as both:
        for _ in range(50):
            paused = generation.counters()["paused_revalidation"]
            sent = threading.Event()

            def send(sent: threading.Event = sent) -> None:
                both.client.send(b"x")
                sent.set()

            sender = Background(send)
            while not sent.is_set():
                generation.members.walk()
            sender.join()
            by_tcp = generation.counters()["paused_revalidation"] > paused
            walked = generation.members.walk()
            if walked.leaving:  # this test did not run for 100 ms
                break
            found += by_tcp and not walked.unsettled
            both.server.recv(1)
    return found


def told_in_time(both: Connection) -> bool:
    both.client.sendall(b"x" * 100)
    deadline = time.monotonic() + STUCK_S
    while not ask(both.server, 100):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    both.server.recv(100)
    return True


# -- 7: retirement ---------------------------------------------------------------------------


@both_ways
@inside()
def test_a_redirect_waits_for_the_lock_as_its_pair_retires(
    cgroup: Path, build: Build, without: bool
) -> None:
    """The verdict was given, and both queues are empty: the target holds its lock in send()."""
    edits = [NO_LOOK_AT_THE_LOCK, *chosen(without, IN_FLIGHT)]
    with build.of(*edits) as generation, connection() as both, SlowMemory(4 * KIB) as memory:
        echo(both, 10)
        holder = Background(both.server.send, memory.view)
        memory.wait_for_fault()
        threads: list[int] = []

        def send() -> None:
            threads.append(int(Path("/proc/thread-self").readlink().name))
            both.client.sendall(b"x" * 100)

        sender = Background(send)
        eventually(lambda: bool(threads) and waits_for_lock(threads[0]), "it waits for the lock")
        generation.stop()
        assert generation.members.retire(0.5, lambda walked: walked.entries == 0) == without
        memory.deliver()
        holder.join(STUCK_S)
        both.server.settimeout(STUCK_S)
        lost = False
        try:
            sender.join(STUCK_S)
            assert read_exactly(both.server, 100) == b"x" * 100
        except (OSError, TimeoutError):
            lost = True
    assert lost == without


# -- 8: connect() and listen() ---------------------------------------------------------------


@both_ways
@inside()
def test_a_joined_socket_connects_again(cgroup: Path, build: Build, without: bool) -> None:
    """What it has not read of its old connection does not come with the new one."""
    both = sequence_connection(7)
    echo(both, 10)
    with build.of(*chosen(without, STAYS)) as generation, listen() as listener:
        assert generation.members.join([proposed(generation, both)]) == [None]
        echo(both, 10)
        before = generation.counters()["redirected_messages"]
        both.server.sendall(b"old" * 100)
        assert generation.counters()["redirected_messages"] == before + 1
        disconnect(both.client)
        both.client.connect(listener.getsockname())
        server, _ = listener.accept()
        server.sendall(b"new")
        both.client.settimeout(STUCK_S)
        assert (both.client.recv(3) == b"new") != without
        server.close()
        both.close()
