"""A reader that does not read stops its sender (I3), and loses nothing by it."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support import memory
from support.background import Background, retiring
from support.datapath import Datapath
from support.emulated import EMULATED, PATIENCE, times
from support.forced import check_it_goes_on, forced
from support.kernel_facts import FIONREAD_OMITS_TCP
from support.processes import inside
from support.traffic import (
    CHUNK,
    Connection,
    Stream,
    connect,
    connection,
    echo,
    listen,
    pattern,
    push,
)

MIB = 1 << 20
WINDOW = 4 * MIB
FIRST_WINDOW = MIB  # of a reader that has not read yet, bpf/carry/bounds.h
TCP_BUFFERS = 16 * MIB
HOPELESS = 64 * MIB  # a sender that got this far is not going to be stopped
MESSAGE_WINDOW = 16 * 256 + 256  # unread messages, bpf/state.h
TINY_MESSAGES = 80_000 if EMULATED else 400_000
SMALL_SNDBUF = 32 * 1024
RCVBUF = 256 * 1024
SPILLS = times(100)


def check_draining(
    generation: Generation, both: Connection, stream: Stream, sent: int, cause: str
) -> None:
    """An undrained pair stays on the map as it is; drained it goes on, and every byte was there."""
    assert not generation.members.retire(0.1, lambda walked: walked.entries == 0)
    walked = generation.members.walk()
    assert walked.entries == 2
    assert (walked.leaving, walked.unsettled) == (0, 1)  # its reader has a border before it
    stream.read(both.server, sent - stream.position)
    check_it_goes_on(generation, both, cause)
    assert forced(generation.counters(), cause) == 1


@inside()
def test_stalled_reader_stops_the_sender(cgroup: Path, datapath: Datapath) -> None:
    with connection() as both:
        sent = push(both.client, HOPELESS)
        generation = datapath.generation
        if generation is None:
            assert sent >= HOPELESS
            return
        assert FIRST_WINDOW <= sent < FIRST_WINDOW + TCP_BUFFERS
        redirected = generation.counters()["redirected_bytes"]
        assert FIRST_WINDOW <= redirected <= FIRST_WINDOW + CHUNK
        check_draining(generation, both, Stream(), sent, "window")


@inside()
def test_stalled_client_stops_the_server(cgroup: Path, generation: Generation) -> None:
    with connection() as both:
        turned = Connection(both.server, both.client)
        sent = push(turned.client, HOPELESS)
        assert FIRST_WINDOW <= sent < FIRST_WINDOW + TCP_BUFFERS
        check_draining(generation, turned, Stream(), sent, "window")


def read_on_edges(sock: socket.socket, size: int, patience_s: float) -> bool:
    """Whether all arrives where a short read is taken for the end of what there is (epoll(7))."""
    stream = Stream()
    sock.setblocking(False)
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN | select.EPOLLET)
        while stream.position < size:
            if not epoll.poll(patience_s):
                return False
            with suppress(BlockingIOError):
                while True:
                    data = sock.recv(2 * FIRST_WINDOW)
                    stream.feed(data)
                    if len(data) < 2 * FIRST_WINDOW:
                        break
    return True


@pytest.mark.parametrize("walks", [True, False])
@inside()
def test_a_reader_on_edges_gets_past_the_border(
    cgroup: Path, generation: Generation, walks: bool
) -> None:
    """TCP's data is behind redirected data, and the sender has nothing more to say."""
    with connection() as both, ExitStack() as stack:
        # so little beyond the window that TCP has delivered all of it before the reader comes
        sent = push(both.client, FIRST_WINDOW + 3 * 16384, 16384)
        assert generation.counters()["redirected_bytes"] < sent
        if walks:
            stack.enter_context(retiring(generation))
        patience_s = 10.0 * PATIENCE if walks else 1.0
        assert read_on_edges(both.server, sent, patience_s) == walks


@inside()
def test_tiny_messages_stay_cheap(cgroup: Path, datapath: Datapath) -> None:
    """A 1-byte message costs 1 KiB of kernel memory, so bytes alone are no measure."""
    with connection() as both:
        # TCP packs millions of 1-byte messages into its default buffers
        both.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_SNDBUF)
        before = memory.kernel_bytes()
        sent = push(both.client, TINY_MESSAGES, chunk=1)
        used = memory.kernel_bytes() - before
        print(f"{sent} messages of 1 byte: {used / MIB:.1f} MiB of kernel memory")
        generation = datapath.generation
        if generation is None:
            assert (sent, used > HOPELESS) == (TINY_MESSAGES, True)
            return
        # TCP packs those behind the spill, and may take all of them
        assert used < 16 * MIB
        assert generation.counters()["redirected_messages"] <= MESSAGE_WINDOW
        check_draining(generation, both, Stream(), sent, "messages")


def send_in_chunks(sock: socket.socket, start: int, size: int, chunk: int) -> None:
    for position in range(start, size, chunk):
        sock.sendall(pattern(position, min(chunk, size - position)))


def set_on_listener(listener: socket.socket) -> Connection:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RCVBUF)
    return connect(listener)


def set_on_accepted(listener: socket.socket) -> Connection:
    both = connect(listener)
    both.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RCVBUF)
    return both


@pytest.mark.parametrize("establish", [set_on_listener, set_on_accepted])
@inside()
def test_rcvbuf_is_the_window(
    cgroup: Path, datapath: Datapath, establish: Callable[[socket.socket], Connection]
) -> None:
    with listen() as listener:
        both = establish(listener)
    sent = push(both.client, HOPELESS)
    generation = datapath.generation
    if generation is None:
        assert sent >= HOPELESS
        return
    assert RCVBUF <= generation.counters()["redirected_bytes"] <= RCVBUF + CHUNK
    assert sent < RCVBUF + TCP_BUFFERS
    check_draining(generation, both, Stream(), sent, "window")


@pytest.mark.plan(learn=False)  # or the listener, whose connections keep spilling, is left alone
@pytest.mark.parametrize("generation", [{"window_bytes": 65536}], indirect=True, ids=["64 KiB"])
@inside()
def test_every_spill_keeps_the_order(cgroup: Path, generation: Generation) -> None:
    """A small window is exceeded at another place each time, and somebody walks all the time."""
    size = 2 * MIB
    with listen() as listener:
        for number in range(SPILLS):
            both = connect(listener)
            chunk = 1000 + 997 * number
            with retiring(generation):
                sent = push(both.client, 4 * 65536, chunk)
                sender = Background(send_in_chunks, both.client, sent, size, chunk)
                reader = Background(Stream().read, both.server, size)
                sender.join()
                reader.join()
            both.close()
    counters = generation.counters()
    assert counters["accelerated_connections"] == SPILLS
    # which limit is met first depends on how far the reader is behind at each grant
    spills = forced(counters, "window") + forced(counters, "messages")
    assert spills >= SPILLS
    # the rest is redirected as soon as the reader has caught up
    assert SPILLS * 65536 <= counters["redirected_bytes"] < SPILLS * size


@inside()
def test_slow_reader_gets_every_byte(cgroup: Path, generation: Generation) -> None:
    """A blocking sender that spills to TCP and is looked at while it sends."""
    size = 64 * MIB
    with connection() as both:
        first = push(both.client, WINDOW + MIB)
        data = pattern(first, size - first)
        stream = Stream()
        with retiring(generation):
            sender = Background(both.client.sendall, data)
            while stream.position < size:
                stream.feed(both.server.recv(10_000))
            sender.join()
        assert generation.counters()["redirected_bytes"] < size
        if FIONREAD_OMITS_TCP:  # so slow a reader may be waiting for FIONREAD to tell of more
            assert generation.counters()["paused_window"] >= 1
            echo(both, 100)
        else:
            check_it_goes_on(generation, both, "window")
