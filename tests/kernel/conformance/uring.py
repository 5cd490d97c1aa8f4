"""io_uring."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket

from kernel.conformance import observe
from kernel.conformance.catalogue import behaviour
from kernel.conformance.scene import Scene, delivered, pipe, send_all
from support import uring
from support.traffic import pattern, read_exactly
from support.uring import Ring


def result(ring: Ring) -> object:
    """Of the next completion: a number, or an errno."""
    _, number, _ = ring.completion()
    return number if number >= 0 else errno.errorcode[-number]


def ring_of(t: Scene) -> Ring | None:
    """None, and noted down, where the kernel refuses io_uring."""
    try:
        ring: Ring = t.keep(Ring())
    except OSError as refused:
        t.note("io_uring_setup", observe.error(refused))
        return None
    return ring


def buffer_of(t: Scene, size: int, content: bytes = b"") -> ctypes.Array[ctypes.c_char]:
    made: ctypes.Array[ctypes.c_char] = t.keep(ctypes.create_string_buffer(content, size))
    return made


@behaviour()
def uring_recv_of_data(t: Scene) -> None:
    """RECV of data that is there"""
    if ring := ring_of(t):
        send_all(t.near, b"data")
        buffer = buffer_of(t, 100)
        ring.submit(uring.RECV, t.far.fileno(), uring.address(buffer), 100)
        t.note("RECV", result(ring))
        t.note("data", buffer.raw[:4])
        return
    t.near.sendall(b"x")


@behaviour()
def uring_recv_pending(t: Scene) -> None:
    """RECV that waits for data, and SEND from the other end"""
    if ring := ring_of(t):
        buffer, data = buffer_of(t, 100), buffer_of(t, 100, b"data")
        ring.submit(uring.RECV, t.far.fileno(), uring.address(buffer), 100, mark=1)
        ring.submit(uring.SEND, t.near.fileno(), uring.address(data), 4, mark=2)
        found = sorted(ring.completion()[:2] for _ in range(2))
        t.note("RECV and SEND", [list(one) for one in found])
        t.note("data", buffer.raw[:4])
        return
    t.near.sendall(b"x")


@behaviour()
def uring_recv_all(t: Scene) -> None:
    """RECV with MSG_WAITALL"""
    if ring := ring_of(t):
        # the connection is on TCP from the call on, where that is seen
        t.near.sendall(b"x")
        assert t.far.recv(1) == b"x"
        buffer = buffer_of(t, 8)
        where = uring.address(buffer)
        ring.submit(uring.RECV, t.far.fileno(), where, 8, flags=socket.MSG_WAITALL)
        send_all(t.near, b"1234")
        t.near.sendall(b"5678")
        t.note("RECV", result(ring))
        t.note("data", buffer.raw)
        return
    t.near.sendall(b"x")


@behaviour()
def uring_read_and_write(t: Scene) -> None:
    """READ and WRITE"""
    if ring := ring_of(t):
        buffer, data = buffer_of(t, 100), buffer_of(t, 100, b"data")
        ring.submit(uring.WRITE, t.near.fileno(), uring.address(data), 4)
        t.note("WRITE", result(ring))
        delivered(t.near)
        ring.submit(uring.READ, t.far.fileno(), uring.address(buffer), 100)
        t.note("READ", result(ring))
        t.note("data", buffer.raw[:4])
        return
    t.near.sendall(b"x")


@behaviour()
def uring_large_send(t: Scene) -> None:
    """SEND of 1 MiB"""
    size = 1 << 20
    if ring := ring_of(t):
        data = buffer_of(t, size, pattern(0, size))
        where = uring.address(data)
        ring.submit(uring.SEND, t.near.fileno(), where, size, flags=socket.MSG_WAITALL)
        stream = read_exactly(t.far, size)
        t.note("SEND", result(ring))
        t.note("stream", observe.same(stream, pattern(0, size)))
        return
    t.near.sendall(b"x")


@behaviour()
def uring_multishot_recv(t: Scene) -> None:
    """multishot RECV into provided buffers (6.0)"""
    if ring := ring_of(t):
        pool = buffer_of(t, 4 * 16)
        # the number of buffers goes where the descriptor does, their first id where the offset does
        ring.submit(uring.PROVIDE_BUFFERS, 4, uring.address(pool), 16, group=7)
        t.note("PROVIDE_BUFFERS", result(ring))
        ring.submit(
            uring.RECV,
            t.far.fileno(),
            priority=uring.RECV_MULTISHOT,
            sqe_flags=uring.SQE_BUFFER_SELECT,
            group=7,
        )
        received = []
        for piece in (b"first", b"second", b"third"):
            t.near.sendall(piece)
            _, number, flags = ring.completion()
            slot = flags >> 16
            more = bool(flags & uring.CQE_F_MORE)
            received.append([pool.raw[slot * 16 : slot * 16 + max(number, 0)], more])
        t.note("received", received)
        t.near.close()
        _, number, flags = ring.completion()
        t.note("end", [number, bool(flags & uring.CQE_F_MORE)])
        return
    t.near.sendall(b"x")


@behaviour()
def uring_poll(t: Scene) -> None:
    """POLL_ADD"""
    if ring := ring_of(t):
        ring.submit(uring.POLL_ADD, t.far.fileno(), flags=select.POLLIN)
        t.near.sendall(b"data")
        _, bits, _ = ring.completion()
        t.note("POLL_ADD", observe.mask(bits))
        t.call("recv", t.far.recv, 100)
        return
    t.near.sendall(b"x")


@behaviour(redirects=False)
def uring_send_zerocopy(t: Scene) -> None:
    """SEND_ZC (6.0): sent, then a notification"""
    if ring := ring_of(t):
        data = buffer_of(t, 50_000, pattern(0, 50_000))
        where, size = uring.address(data), 50_000
        ring.submit(uring.SEND_ZC, t.near.fileno(), where, size, flags=socket.MSG_WAITALL)
        _, number, flags = ring.completion()
        t.note("SEND_ZC", number if number >= 0 else errno.errorcode[-number])
        if number < 0:
            return
        t.note("stream", observe.same(read_exactly(t.far, 50_000), pattern(0, 50_000)))
        if flags & uring.CQE_F_MORE:
            t.note("notification", bool(ring.completion()[2] & uring.CQE_F_NOTIF))
        return
    t.near.sendall(b"x")


@behaviour()
def uring_splice(t: Scene) -> None:
    """SPLICE from the socket to a pipe"""
    if ring := ring_of(t):
        send_all(t.near, b"data")
        with pipe() as (read_end, write_end):
            no_offset = (1 << 64) - 1
            ring.submit(
                uring.SPLICE,
                write_end,
                no_offset,  # where the address is, the offset of the source
                100,
                offset=no_offset,
                splice_fd=t.far.fileno(),
            )
            t.note("SPLICE", result(ring))
            t.call("pipe", os.read, read_end, 100)
        return
    t.near.sendall(b"x")


@behaviour()
def uring_shutdown(t: Scene) -> None:
    """SHUTDOWN while RECV of the other end waits"""
    if ring := ring_of(t):
        send_all(t.near, b"data")
        read_exactly(t.far, 4)
        buffer = buffer_of(t, 100)
        ring.submit(uring.RECV, t.far.fileno(), uring.address(buffer), 100, mark=1)
        ring.submit(uring.SHUTDOWN, t.near.fileno(), length=socket.SHUT_WR, mark=2)
        t.note("both", [list(one) for one in sorted(ring.completion()[:2] for _ in range(2))])
        return
    t.near.sendall(b"x")
