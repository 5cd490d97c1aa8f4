"""blocking_readers = "tcp": who sleeps inside recv() is woken for nothing as on TCP, and goes back.

A frozen and thawed cgroup, a signal whose handler restarts the call, and SIGSTOP and SIGCONT wake
it. On a sockhash recv() returns EAGAIN then: see the textbook. Who polls first is redirected.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection as Channel
from pathlib import Path
from typing import Any

import pytest

from support import cgroups, processes
from support.background import Background, retiring
from support.child import Child
from support.datapath import Datapath, settings_of
from support.edited import Edit, generation_of
from support.emulated import PATIENCE
from support.kernel_facts import FIONREAD_OMITS_TCP
from support.traffic import Connection, connect, listen
from support.waiting import eventually

pytestmark = pytest.mark.plan(blocking_readers="tcp")
FIRST = 5  # messages before the reader sleeps
SLEEPING = ("wait_woken",)


def sleeps_in_recv(pid: int) -> bool:
    return Path(f"/proc/{pid}/wchan").read_text() in SLEEPING


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def frozen(cgroup: Path) -> bool:
    return "frozen 1" in (cgroup / "cgroup.events").read_text()


def freeze(pid: int, cgroup: Path) -> None:
    (cgroup / "cgroup.freeze").write_text("1")
    eventually(lambda: frozen(cgroup), "the cgroup is frozen")
    (cgroup / "cgroup.freeze").write_text("0")
    eventually(lambda: not frozen(cgroup), "the cgroup is thawed")


def interrupt(pid: int, cgroup: Path) -> None:
    os.kill(pid, signal.SIGUSR1)  # its handler is installed with SA_RESTART


def stop_and_continue(pid: int, cgroup: Path) -> None:
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: state(pid) == "T", "it has stopped")
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: state(pid) != "T", "it goes on")


WAKERS: dict[str, Callable[[int, Path], None]] = {
    "freezer": freeze,
    "signal": interrupt,
    "SIGSTOP": stop_and_continue,
}


def read_blocking(channel: Channel, cgroup: Path, reader: socket.socket) -> None:
    """A process of its own, in a cgroup of its own, that sleeps inside recv()."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, False)
    cgroups.join(cgroup)
    channel.send("there")
    while True:
        try:
            data = reader.recv(100)
        except OSError as error:
            channel.send(errno.errorcode[error.errno or 0])
            continue
        channel.send(data)
        if data == b"end":
            return


@contextmanager
def frozen_cgroup(parent: Path) -> Iterator[Path]:
    path = parent / "reader"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


def woken(
    parent: Path,
    wake: Callable[[int, Path], None],
    reader: str,
    settle: Callable[[], bool] = lambda: True,
) -> list[Any]:
    """What recv() of a sleeping reader gives that is woken for nothing, then sent something.

    One that fell asleep before the pair has left is not moved: so it is sent a message after that.
    """
    with listen() as listener:
        both = connect(listener)
    if reader == "client":
        both = Connection(both.server, both.client)
    with frozen_cgroup(parent) as place, Child(read_blocking, place, both.server) as child:
        seen = [child.channel.recv()]
        for number in range(FIRST):
            eventually(lambda: sleeps_in_recv(child.pid), "the reader sleeps inside recv()")
            both.client.sendall(b"%d" % number)
            seen.append(child.channel.recv())
            if number == 0:
                assert settle()
        eventually(lambda: sleeps_in_recv(child.pid), "the reader sleeps inside recv()")
        for _ in range(3):
            wake(child.pid, place)
            if child.channel.poll(0.2 * PATIENCE):
                seen.append(child.channel.recv())
            eventually(lambda: sleeps_in_recv(child.pid), "it sleeps again")
        both.client.sendall(b"end")
        assert child.channel.poll(10 * PATIENCE), seen
        seen.append(child.channel.recv())
        child.wait()
    both.close()
    return seen


@pytest.mark.parametrize("reader", ["client", "server"])
@pytest.mark.parametrize("waker", WAKERS)
def test_sleepers_are_left_to_tcp(
    cgroup: Path, other_cgroup: Path, datapath: Datapath, waker: str, reader: str
) -> None:
    wake = WAKERS[waker]
    # processes may be in leaves only: the parent stays where it is, on plain TCP
    plain = processes.run(woken, other_cgroup, wake, reader)
    assert plain == ["there", *(b"%d" % n for n in range(FIRST)), b"end"]
    generation = datapath.generation
    if generation is None:
        assert "EAGAIN" in processes.run(woken, cgroup, wake, reader, cgroup=cgroup)
        return

    def settle() -> bool:
        return generation.members.retire(10 * PATIENCE, lambda walked: walked.entries == 0)

    assert processes.run(woken, cgroup, wake, reader, settle, cgroup=cgroup) == plain
    counters = generation.counters()
    assert counters["accelerated_connections"] == 1
    assert counters["retired_blocking_reader"] == 1


def polls(reader: socket.socket) -> bytes:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    assert poll.poll(10_000)
    return reader.recv(100)


def selects(reader: socket.socket) -> bytes:
    assert select.select([reader], [], [], 10)[0]
    return reader.recv(100)


def waits_with_epoll(reader: socket.socket) -> bytes:
    with select.epoll() as epoll:
        epoll.register(reader, select.EPOLLIN | select.EPOLLET)
        assert epoll.poll(10)
        return reader.recv(100)


def reads_non_blocking(reader: socket.socket) -> bytes:
    reader.setblocking(False)
    while True:
        try:
            return reader.recv(100)
        except BlockingIOError:
            select.select([reader], [], [])


def with_timeout(reader: socket.socket) -> bytes:
    """Python's own way: O_NONBLOCK and poll()."""
    reader.settimeout(10)
    return reader.recv(100)


READERS = [polls, selects, waits_with_epoll, reads_non_blocking, with_timeout]
ROUNDS = 200
# A program that loses its processor before it polls has shown nothing for a while.
PATIENT: Edit = (
    "leave/walk.c",
    "#define SHOWS_WITHIN_MS 3\t",
    "#define SHOWS_WITHIN_MS 60000\t",
)
# One look in 16 finds that the entry of poll(2) it looks at has left the wait queue: list_del().
GOES: Edit = (
    "leave/in_flight.h",
    "		before = at;\n		at = kernel_list_next(at);\n",
    "		before = at;\n		at = bpf_get_prandom_u32() % 16 ? kernel_list_next(at) : 0;\n",
)
# Who waits in poll(2) has no reference to the psock, so nothing would be looked at.
LOOKS: Edit = (
    "carry/reader.h",
    "	if (kernel_psock_refcnt(psock_of(sk)) <= 1)\n",
    "	if (0)\n",
)
# Such an entry passed for a sleeping task.
GONE_SLEEPS: Edit = (
    "leave/in_flight.h",
    "		if (!at)\n			return UNSEEN;\n",
    "		if (!at)\n			return CROWD;\n",
)


def answer(channel: Channel, read: Callable[[socket.socket], bytes], sock: socket.socket) -> None:
    for _ in range(ROUNDS):
        sock.sendall(read(sock))


def exchange(
    read: Callable[[socket.socket], bytes], reader: str, always_waits: bool = False
) -> None:
    """Round trips; each begins when the reader waits, or the first one only."""
    with listen() as listener:
        both = connect(listener)
    if reader == "client":
        both = Connection(both.server, both.client)
    with Child(answer, read, both.server) as child:
        both.server.close()
        # a program that polls a moment later than its first message comes is joined again, later
        wchan = Path(f"/proc/{child.pid}/wchan")
        for number in range(ROUNDS):
            if number == 0 or always_waits:
                eventually(lambda: wchan.read_text() != "0", "the reader waits")
            message = struct.pack("I", number)
            both.client.sendall(message)
            assert polls(both.client) == message
        assert child.wait() == 0


@pytest.mark.parametrize("reader", ["client", "server"])
@pytest.mark.parametrize("read", READERS)
def test_who_polls_is_redirected(
    cgroup: Path,
    bpffs: Path,
    tmp_path: Path,
    read: Callable[[socket.socket], bytes],
    reader: str,
) -> None:
    with generation_of([PATIENT], bpffs, cgroup, tmp_path, blocking_readers="tcp") as generation:
        with retiring(generation):
            processes.run(exchange, read, reader, cgroup=cgroup)
        counters = generation.counters()
    assert counters["retired_blocking_reader"] == 0
    assert counters["redirected_messages"] >= 0.98 * 2 * ROUNDS


@pytest.mark.parametrize("without", [False, True], ids=["with", "without"])
def test_pollers_that_come_and_go(cgroup: Path, bpffs: Path, tmp_path: Path, without: bool) -> None:
    edits, scope = [PATIENT, LOOKS, GOES], {"learn": False, "blocking_readers": "tcp"}
    if without:
        edits.append(GONE_SLEEPS)
    with generation_of(edits, bpffs, cgroup, tmp_path, **scope) as generation:
        with retiring(generation):
            processes.run(exchange, polls, "server", True, cgroup=cgroup)
        counters = generation.counters()
    assert counters["retired_blocking_reader"] == without
    if not without:
        assert counters["redirected_messages"] >= 0.98 * 2 * ROUNDS


MESSAGES = 20
# Nothing tells of a reader but its wait queue.
READS_UNSEEN: Edit = ("carry/redirect.c", "		st->reads_seen++;\n", "")
AT_ONCE: Edit = ("leave/walk.c", "#define SHOWS_WITHIN_MS 3\t", "#define SHOWS_WITHIN_MS 0\t")
NEVER_BEGINS: Edit = ("carry/redirect.c", "	if (!may_begin(sk, st))\n", "	if (1)\n")


def read_half(walk: Callable[[], object]) -> None:
    """A blocking descriptor that has something to read each time, so that nobody waits."""
    with listen() as listener:
        both = connect(listener)
    for _ in range(MESSAGES):
        both.client.sendall(bytes(1000))
        assert len(both.server.recv(500, socket.MSG_WAITALL)) == 500
    walk()
    both.close()


@pytest.mark.parametrize("without", [False, True], ids=["with", "without"])
def test_who_always_finds_data(cgroup: Path, bpffs: Path, tmp_path: Path, without: bool) -> None:
    """It sleeps as little as it polls. Until it has read everything, its data comes by TCP.

    Where FIONREAD leaves out redirected data, it may be one that asks that all the time.
    """
    edits = [AT_ONCE, NEVER_BEGINS, *([READS_UNSEEN] if without else [])]
    with generation_of(edits, bpffs, cgroup, tmp_path, blocking_readers="tcp") as generation:
        retire = generation.members.retire
        walk = partial(retire, 10 * PATIENCE, lambda walked: not walked.leaving)
        processes.run(read_half, walk, cgroup=cgroup)
        counters = generation.counters()
        counts_redirected = FIONREAD_OMITS_TCP or settings_of(generation).answers_fionread
    assert counters["accelerated_connections"] == 1
    assert counters["retired_blocking_reader"] == (without or not counts_redirected)


STREAMS = 20
SIZE, WRITES = 65536, 500
# A sender that has been woken is on the wait queue for some more moments.
WOKEN_SENDERS: Edit = (
    "carry/reader.h",
    "	if (kernel_write_pending(sk))\n		return 0;\n	load_barrier(st);\n"
    "	if (kernel_lock_owned(sk))\n		return 0;\n	load_barrier(st);\n",
    "",
)


def write_and_read(sock: socket.socket) -> None:
    def write() -> None:
        for _ in range(WRITES):
            sock.sendall(bytes(SIZE))
        sock.shutdown(socket.SHUT_WR)

    writer = Background(write)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while poll.poll(10_000 * PATIENCE) and sock.recv(4 * SIZE):
        pass
    writer.join(10 * PATIENCE)


def stream_both_ways() -> None:
    with listen() as listener:
        both = connect(listener)
    with Child(lambda _: write_and_read(both.server)) as child:
        both.server.close()
        write_and_read(both.client)
        assert child.wait() == 0
    both.client.close()


@pytest.mark.parametrize("without", [False, True], ids=["with", "without"])
def test_senders_that_wait_for_room(
    cgroup: Path, bpffs: Path, tmp_path: Path, without: bool
) -> None:
    edits = [PATIENT, *([WOKEN_SENDERS] if without else [])]
    with generation_of(edits, bpffs, cgroup, tmp_path, blocking_readers="tcp") as generation:
        with retiring(generation):
            for _ in range(STREAMS * (20 if without else 1)):
                processes.run(stream_both_ways, cgroup=cgroup)
                if generation.counters()["retired_blocking_reader"]:
                    break
        counters = generation.counters()
    assert bool(counters["retired_blocking_reader"]) == without
    assert without or counters["redirected_messages"] > 0
