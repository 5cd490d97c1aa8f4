"""A reader whose recv() waits for memory holds its socket's lock; a sender never waits for that.

A redirect takes that lock (bpf_tcp_ingress()), and TCP does without it (sk_backlog). The textbook
shows the fault: its non-blocking send() sleeps for as long as the reader's memory takes.
"""

from __future__ import annotations

import socket
import time
from contextlib import closing
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support.background import Background
from support.datapath import Datapath
from support.edited import Edit, generation_of
from support.emulated import PATIENCE
from support.forced import check_it_goes_on
from support.processes import inside, outside
from support.slow_file import POSSIBLE, SlowFile
from support.slow_memory import SlowMemory
from support.topology import Family, veth
from support.traffic import Connection, Stream, connection, echo, pattern, push, set_linger

KIB, MIB = 1 << 10, 1 << 20
SIZES = [4, 4 * KIB, 64 * KIB, MIB]
FIRST = 64 * KIB  # at most, of what is unread when the reader comes
AT_ONCE_S = 0.5 * PATIENCE
BLOCKED_S = 1.0
ADDRESSES = ["127.0.0.1", "::1"]
Kind = type[SlowMemory] | type[SlowFile]
NEEDS_FUSE = pytest.mark.skipif(not POSSIBLE, reason="no python3-fusepy, or no FUSE")
KINDS = [SlowMemory, pytest.param(SlowFile, marks=NEEDS_FUSE)]
STEP = MIB


def turned(both: Connection, reader: str) -> Connection:
    """So that the `client` is the one that sends."""
    return both if reader == "server" else Connection(both.server, both.client)


def send_at_once(sock: socket.socket, start: int, size: int) -> tuple[int, float]:
    """How much a non-blocking send() took, and for how long it did not return."""
    before = time.monotonic()
    sent = sock.send(pattern(start, size), socket.MSG_DONTWAIT)
    return sent, time.monotonic() - before


class FaultingRead:
    """A recv() that waits for its memory, with `size` bytes of the test stream sent before.

    It is less than `size` if TCP would block.
    """

    def __init__(self, both: Connection, size: int, memory: SlowMemory | SlowFile) -> None:
        self.stream = Stream()
        self._view = memory.view
        push(both.client, size)
        self._thread = Background(both.server.recv_into, memory.view)
        memory.wait_for_fault()

    def join(self) -> None:
        """Its memory was delivered: recv() comes back, and what it read is right."""
        received = self._thread.join(10 * PATIENCE)
        self.stream.feed(bytes(self._view[:received]))


@inside()
def test_the_textbook_waits(cgroup: Path, datapath: Datapath) -> None:
    """The measurement below does tell a send() that waits from one that does not."""
    with connection() as both, SlowMemory(4 * KIB) as memory:
        echo(both, 10)
        reader = FaultingRead(both, 4, memory)
        sender = Background(send_at_once, both.client, 4, 4)
        if datapath.is_textbook:
            with pytest.raises(TimeoutError):
                sender.join(BLOCKED_S)
        else:
            sender.join(BLOCKED_S * PATIENCE)
        memory.deliver()
        reader.join()
        sent, took = sender.join(10 * PATIENCE)
        assert (took >= BLOCKED_S) == datapath.is_textbook
        reader.stream.read(both.server, 4 + sent - reader.stream.position)


def check_send(both: Connection, size: int, kind: Kind) -> None:
    with kind(max(size, 4 * KIB)) as memory:
        first = min(size, FIRST)
        reader = FaultingRead(both, first, memory)
        sent, took = send_at_once(both.client, first, size)
        assert sent > 0
        assert took < AT_ONCE_S
        memory.deliver()
        reader.join()
        reader.stream.read(both.server, first + sent - reader.stream.position)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("size", SIZES)
@outside()
def test_plain_tcp(cgroup: Path, address: str, size: int, kind: Kind) -> None:
    with connection(address) as both:
        check_send(both, size, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", ["client", "server"])
@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("size", SIZES)
@inside()
def test_send_does_not_wait(
    cgroup: Path, generation: Generation, address: str, size: int, reader: str, kind: Kind
) -> None:
    with connection(address) as both:
        echo(both, 10)
        assert generation.counters()["redirected_messages"] == 20
        check_send(turned(both, reader), size, kind)
        assert generation.counters()["redirected_messages"] > 20
        check_it_goes_on(generation, both, "peer_busy")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", ["client", "server"])
@pytest.mark.parametrize("size", SIZES)
@inside()
def test_no_deadlock_with_who_brings_the_memory(
    cgroup: Path, generation: Generation, size: int, reader: str, kind: Kind
) -> None:
    """The sender itself delivers the reader's memory, and sends a message before that."""
    with connection() as both, kind(max(size, 4 * KIB)) as memory:
        echo(both, 10)
        ends = turned(both, reader)
        reading = FaultingRead(ends, 4, memory)
        sent: list[int] = []

        def handle() -> None:
            sent.append(ends.client.send(pattern(4, size), socket.MSG_DONTWAIT))
            memory.deliver()

        Background(handle).join(5 * PATIENCE)
        reading.join()
        reading.stream.read(ends.server, 4 + sent[0] - reading.stream.position)
        check_it_goes_on(generation, both, "peer_busy")


# more than a socket's backlog takes together with what is unread, carry/bounds.h: backlog_limit()
MUCH = 10 * 64 * KIB
NO_BACKLOG_LIMIT: Edit = (
    "carry/bounds.h",
    "	return 2 * kernel_rcvbuf(peer) + kernel_sndbuf(peer) / 2;\n",
    "	return 1 << 20;\n",
)


def is_told_of_the_reset(both: Connection) -> bool:
    """Whether the reader is told of a reset that comes while its recv() waits for memory."""
    with SlowMemory(4 * KIB) as memory:
        echo(both, 10)
        reader = FaultingRead(both, MUCH, memory)
        set_linger(both.client, 0)
        both.client.close()
        memory.deliver()
        reader.join()
    both.server.settimeout(2.0 * PATIENCE)
    try:
        while data := both.server.recv(64 * KIB):
            reader.stream.feed(data)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    raise AssertionError("the end of the data, and no reset")


@outside()
def test_plain_tcp_is_told_of_a_reset(cgroup: Path) -> None:
    with closing(veth(Family(4)).connect()) as both:  # buffers are large on the loopback device
        assert is_told_of_the_reset(both)


@pytest.mark.parametrize("without", [False, True], ids=["with", "without"])
@inside()
def test_a_reset_finds_the_lock(cgroup: Path, bpffs: Path, tmp_path: Path, without: bool) -> None:
    edits, scope = [NO_BACKLOG_LIMIT] if without else [], {"learn": False, "addresses": "any"}
    with generation_of(edits, bpffs, cgroup, tmp_path, **scope) as generation:
        with closing(veth(Family(4)).connect()) as both:
            assert is_told_of_the_reset(both) != without
        assert generation.counters()["redirected_messages"] > 20


def send_in_step(sock: socket.socket, size: int, chunk: int) -> None:
    """No further ahead of the reader than STEP bytes, so that the window has no part in this."""
    for position in range(0, size, chunk):
        sock.sendall(pattern(position, chunk))
        if (position + chunk) % STEP == 0:
            assert sock.recv(1) == b"a"


@inside()
def test_a_stream_keeps_being_redirected(cgroup: Path, generation: Generation) -> None:
    """A reader that is busy because it reads is no reason to go to TCP.

    One that loses its processor with the lock held looks like one that waits for memory, so this is
    of the best of some connections.
    """
    assert max(redirected_share(generation) for _ in range(5)) >= 0.98


def redirected_share(generation: Generation) -> float:
    size, chunk = 32 * MIB, 64 * KIB
    before = generation.counters()["redirected_bytes"]
    with connection() as both:
        sender = Background(send_in_step, both.client, size, chunk)
        stream = Stream()
        for _ in range(size // STEP):
            stream.read(both.server, STEP)
            both.server.sendall(b"a")
        sender.join(10 * PATIENCE)
    return (generation.counters()["redirected_bytes"] - before) / size
