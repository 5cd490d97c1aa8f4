"""sendfile, splice, vmsplice and MSG_ZEROCOPY."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct
import tempfile
import time
from typing import Any

from kernel.conformance import observe
from kernel.conformance.catalogue import behaviour
from kernel.conformance.scene import Scene, pipe, send_all, wait_events
from support.emulated import EMULATED
from support.traffic import pattern, read_exactly, read_to_end

MIB = 1 << 20
SO_ZEROCOPY = 60
MSG_ZEROCOPY = 0x4000000
SO_EE_ORIGIN_ZEROCOPY = 5
SPLICE_F_NONBLOCK = 2
F_SETPIPE_SZ = 1031
_libc = ctypes.CDLL(None, use_errno=True)
_splice: Any = os.splice  # type: ignore[attr-defined]


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@behaviour()
def sendfile(t: Scene) -> None:
    """sendfile() of 1 MiB, in parts"""
    with tempfile.TemporaryFile() as file:
        file.write(pattern(0, MIB))
        file.flush()
        reader = t.thread(read_exactly, t.far, MIB)
        sent = 0
        while sent < MIB:
            sent += os.sendfile(t.near.fileno(), file.fileno(), sent, 100_000)
        t.note("stream", observe.same(reader.join(), pattern(0, MIB)))
        t.call("at the end", os.sendfile, t.near.fileno(), file.fileno(), MIB, 100_000)


@behaviour()
def sendfile_from_the_middle(t: Scene) -> None:
    """sendfile() between send()s, from an offset"""
    with tempfile.TemporaryFile() as file:
        file.write(pattern(0, 100_000))
        file.flush()
        t.near.sendall(b"head")
        t.note("sent", os.sendfile(t.near.fileno(), file.fileno(), 50_000, 30_000))
        t.near.sendall(b"tail")
    data = read_exactly(t.far, 30_008)
    t.note("stream", observe.same(data, b"head" + pattern(50_000, 30_000) + b"tail"))


@behaviour()
def sendfile_to_a_stalled_reader(t: Scene) -> None:
    """non-blocking sendfile() stops when there is no room"""
    size = 32 * MIB
    with tempfile.TemporaryFile() as file:
        file.write(pattern(0, size))
        file.flush()
        t.near.setblocking(False)
        sent = 0
        try:
            while sent < size:
                sent += os.sendfile(t.near.fileno(), file.fileno(), sent, MIB)
        except BlockingIOError:
            pass
    t.note("taken", "less than 32 MiB" if sent < size else sent)
    t.note("stream", observe.same(read_exactly(t.far, sent), pattern(0, sent)))


@behaviour()
def splice_in(t: Scene) -> None:
    """splice() from a pipe to the socket"""
    with pipe() as (read_end, write_end):
        os.write(write_end, pattern(0, 50_000))
        t.note("moved", _splice(read_end, t.near.fileno(), 50_000))
    t.note("stream", observe.same(read_exactly(t.far, 50_000), pattern(0, 50_000)))


@behaviour()
def vmsplice_in(t: Scene) -> None:
    """vmsplice() to a pipe, and splice() from there to the socket"""
    data = t.keep(ctypes.create_string_buffer(pattern(0, 10_000), 10_000))
    vector = Iovec(ctypes.addressof(data), 10_000)
    with pipe() as (read_end, write_end):
        t.note("vmsplice", _libc.vmsplice(write_end, ctypes.byref(vector), 1, 0))
        t.note("splice", _splice(read_end, t.near.fileno(), 10_000))
        t.note("stream", observe.same(read_exactly(t.far, 10_000), pattern(0, 10_000)))


@behaviour()
def splice_out(t: Scene) -> None:
    """splice() from the socket to a pipe"""
    send_all(t.near, pattern(0, 1000))
    with pipe() as (read_end, write_end):
        t.far.setblocking(False)
        t.call("moved", _splice, t.far.fileno(), write_end, 1000)
        t.call("nothing left", _splice, t.far.fileno(), write_end, 1000)
        os.set_blocking(read_end, False)
        t.call("pipe", os.read, read_end, 1000)


@behaviour(redirects=False)  # not while a thread waits in TCP's own code
def splice_out_blocking(t: Scene) -> None:
    """splice() from the socket waits for data"""
    with pipe() as (read_end, write_end):
        mover = t.blocked(_splice, t.far.fileno(), write_end, 1000)
        t.near.sendall(b"data")
        t.note("moved", mover.result())
        t.call("pipe", os.read, read_end, 1000)


@behaviour(redirects=False)
def splice_out_at_the_end(t: Scene) -> None:
    """splice() from the socket at the end of the stream"""
    t.near.close()
    wait_events(t.far, select.POLLRDHUP)
    with pipe() as (_read_end, write_end):
        t.call("moved", _splice, t.far.fileno(), write_end, 1000)


@behaviour()
def copying_proxy(t: Scene) -> None:
    """a proxy that splices what poll() says is readable (Go io.Copy, HAProxy, docker-proxy)"""
    sender = t.thread(t.near.sendall, pattern(0, 200_000))
    t.far.setblocking(False)
    poll = select.poll()
    poll.register(t.far, select.POLLIN)
    data = bytearray()
    with pipe() as (read_end, write_end):
        while len(data) < 200_000:
            poll.poll()
            try:
                moved = _splice(t.far.fileno(), write_end, 65536, flags=SPLICE_F_NONBLOCK)
            except BlockingIOError:
                t.note("readable", "and nothing to splice")
                return
            data += os.read(read_end, moved)
    sender.join()
    t.note("stream", observe.same(bytes(data), pattern(0, 200_000)))


@behaviour()
def tee_in(t: Scene) -> None:
    """tee() of a pipe, with one copy for the socket"""
    with pipe() as source, pipe() as copy:
        os.write(source[1], b"data")
        t.note("tee", _libc.tee(source[0], copy[1], ctypes.c_size_t(4), 0))
        t.note("splice", _splice(copy[0], t.near.fileno(), 4))
        t.note("kept", os.read(source[0], 10))
    t.note("stream", read_exactly(t.far, 4))


@behaviour()
def large_splice_in(t: Scene) -> None:
    """splice() of 1 MiB from a large pipe"""
    with pipe() as (read_end, write_end):
        fcntl.fcntl(write_end, F_SETPIPE_SZ, MIB)
        os.write(write_end, pattern(0, MIB))
        reader = t.thread(read_exactly, t.far, MIB)
        moved = 0
        while moved < MIB:
            moved += _splice(read_end, t.near.fileno(), MIB - moved)
        t.note("stream", observe.same(reader.join(), pattern(0, MIB)))


@behaviour(guarded=True)
def zerocopy(t: Scene) -> None:
    """SO_ZEROCOPY and MSG_ZEROCOPY: a completion on the error queue"""
    t.call("SO_ZEROCOPY", t.near.setsockopt, socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    if EMULATED:
        time.sleep(0.5)  # until the daemon has taken it off the sockhash
    data = t.keep(bytearray(pattern(0, 50_000)))
    t.call("send", t.near.send, data, MSG_ZEROCOPY)
    t.note("stream", observe.same(read_exactly(t.far, 50_000), bytes(data)))
    send_all(t.near, b"last")
    t.note("poll", observe.events(t.near))
    flags = socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT

    def origins() -> list[int]:
        control = t.near.recvmsg(0, 512, flags)[1]
        return [struct.unpack_from("=IB", raw)[1] for _, _, raw in control]

    t.call("completion", origins)


@behaviour()
def zerocopy_unasked(t: Scene) -> None:
    """MSG_ZEROCOPY without SO_ZEROCOPY copies"""
    t.call("send", t.near.send, pattern(0, 50_000), MSG_ZEROCOPY)
    t.note("stream", observe.same(read_exactly(t.far, 50_000), pattern(0, 50_000)))
    t.note("poll", observe.events(t.near))


@behaviour()
def reused_buffer(t: Scene) -> None:
    """a buffer may be written to again once send() is back"""
    buffer = bytearray(pattern(0, 50_000))
    t.near.sendall(buffer)
    buffer[:] = bytes(len(buffer))
    t.note("stream", observe.same(read_exactly(t.far, 50_000), pattern(0, 50_000)))


@behaviour()
def file_changed_after_sendfile(t: Scene) -> None:
    """a file sent with sendfile(), and closed and removed before it is read"""
    with tempfile.NamedTemporaryFile() as file:
        file.write(pattern(0, 50_000))
        file.flush()
        os.sendfile(t.near.fileno(), file.fileno(), 0, 50_000)
    t.near.close()
    t.note("stream", observe.same(read_to_end(t.far), pattern(0, 50_000)))
