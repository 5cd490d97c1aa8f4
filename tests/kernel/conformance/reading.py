"""Reading: flags, limits and time-outs."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct

from kernel.conformance import observe
from kernel.conformance.catalogue import behaviour
from kernel.conformance.scene import (
    Scene,
    delivered,
    fill,
    queued,
    send_all,
    unread,
    wait_events,
    wait_for,
)
from support.traffic import pattern, read_exactly

SO_TIMESTAMP = 29  # asm-generic/socket.h, the old layout
SO_PEEK_OFF = 42
SO_TIMESTAMPING = 37
TCP_INQ = 36
TCP_CM_INQ = TCP_INQ
SOF_TIMESTAMPING = 1 << 9 | 1 << 4 | 1 << 7 | 1 << 11  # TX_ACK, SOFTWARE, OPT_ID, OPT_TSONLY
STAMPED_AFTER = 100
BEHIND = 5_000_000  # more than the window
REDIRECTED = 4_400_000  # no more than that of it is redirected
_libc = ctypes.CDLL(None, use_errno=True)


def timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """In the kernel, unlike settimeout()."""
    whole = int(seconds)
    limit = struct.pack("ll", whole, int((seconds - whole) * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, option, limit)


@behaviour()
def peek(t: Scene) -> None:
    """MSG_PEEK leaves the data, over several messages, too"""
    send_all(t.near, b"abc", b"def")
    t.call("2 bytes", t.far.recv, 2, socket.MSG_PEEK)
    t.call("100 bytes", t.far.recv, 100, socket.MSG_PEEK)
    t.call("read 4", t.far.recv, 4)
    t.call("peek at the rest", t.far.recv, 100, socket.MSG_PEEK)
    t.call("read the rest", t.far.recv, 100)
    t.call("peek at nothing", t.far.recv, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)


@behaviour(redirects=False)
def peek_for_life(t: Scene) -> None:
    """MSG_PEEK tells a live connection from a closed one, as curl and JDBC pools ask"""
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
    t.call("alive", t.near.recv, 1, flags)
    t.far.close()
    wait_events(t.near, select.POLLRDHUP)
    t.call("closed", t.near.recv, 1, flags)


@behaviour()
def blocking_peek(t: Scene) -> None:
    """a blocking MSG_PEEK waits"""
    reader = t.blocked(t.far.recv, 100, socket.MSG_PEEK)
    send_all(t.near, b"data")
    t.note("peek", reader.result())
    t.call("recv", t.far.recv, 100)


@behaviour(guarded=True)
def peek_offset(t: Scene) -> None:
    """SO_PEEK_OFF, where the kernel has it for TCP (6.9)"""
    t.call("setsockopt", t.far.setsockopt, socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    send_all(t.near, b"abcdef")
    t.call("first", t.far.recv, 2, socket.MSG_PEEK)
    t.call("second", t.far.recv, 2, socket.MSG_PEEK)
    t.call("recv", t.far.recv, 100)


def _recv_to_null(sock: socket.socket, size: int, flags: int) -> int:
    taken = int(_libc.recv(sock.fileno(), None, ctypes.c_size_t(size), flags))
    if taken < 0:
        raise OSError(ctypes.get_errno(), "recv")
    return taken


@behaviour()
def truncate(t: Scene) -> None:
    """MSG_TRUNC discards data without copying it, to a null pointer as well (HAProxy drains so)"""
    send_all(t.near, b"abcdef")
    buffer = bytearray(b"....")
    t.call("recv 4", t.far.recv_into, buffer, 4, socket.MSG_TRUNC)
    t.note("buffer", buffer)
    t.call("to a null pointer", _recv_to_null, t.far, 1, socket.MSG_TRUNC | socket.MSG_DONTWAIT)
    t.call("the rest", t.far.recv, 100)


@behaviour()
def wait_all(t: Scene) -> None:
    """MSG_WAITALL waits for all of it"""
    send_all(t.near, b"1234")
    reader = t.blocked_or_done(t.far.recv, 8, socket.MSG_WAITALL)
    t.near.sendall(b"5678")
    t.note("recv", reader.result())


@behaviour()
def wait_all_there(t: Scene) -> None:
    """MSG_WAITALL of what is there already"""
    send_all(t.near, b"1234", b"5678")
    t.call("recv", t.far.recv, 8, socket.MSG_WAITALL)


@behaviour()
def wait_all_cut_short(t: Scene) -> None:
    """MSG_WAITALL ends with the stream"""
    send_all(t.near, b"1234")
    reader = t.blocked_or_done(t.far.recv, 8, socket.MSG_WAITALL)
    t.near.close()
    t.note("recv", reader.result())


@behaviour()
def dont_wait(t: Scene) -> None:
    """MSG_DONTWAIT on a blocking socket"""
    t.call("nothing there", t.far.recv, 1, socket.MSG_DONTWAIT)
    send_all(t.near, b"data")
    t.call("data there", t.far.recv, 100, socket.MSG_DONTWAIT)
    t.call("nothing again", t.far.recv, 100, socket.MSG_DONTWAIT)


@behaviour()
def nonblocking(t: Scene) -> None:
    """O_NONBLOCK, set before and after data is there"""
    t.far.setblocking(False)
    t.call("nothing there", t.far.recv, 1)
    send_all(t.near, b"data")
    t.call("data there", t.far.recv, 100)
    t.far.setblocking(True)
    reader = t.blocked(t.far.recv, 100)
    t.near.sendall(b"more")
    t.note("blocking again", reader.result())


@behaviour(redirects=False)
def error_queue(t: Scene) -> None:
    """an empty error queue"""
    t.call("MSG_ERRQUEUE", t.near.recvmsg, 100, 100, socket.MSG_ERRQUEUE)


@behaviour()
def out_of_band(t: Scene) -> None:
    """MSG_OOB: the urgent byte is apart from the stream"""
    t.near.sendall(b"ab")
    t.near.send(b"!", socket.MSG_OOB)
    t.near.sendall(b"cd")
    delivered(t.near)
    t.note("poll", observe.events(t.far))
    t.call("urgent", t.far.recv, 1, socket.MSG_OOB)
    t.call("up to the mark", t.far.recv, 100)
    t.call("after it", t.far.recv, 100, socket.MSG_DONTWAIT)


@behaviour(guarded=True)
def out_of_band_in_line(t: Scene) -> None:
    """MSG_OOB to a reader with SO_OOBINLINE"""
    t.far.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    t.near.sendall(b"ab")
    t.near.send(b"!", socket.MSG_OOB)
    delivered(t.near)
    t.note("poll", observe.events(t.far))
    t.call("up to the mark", t.far.recv, 100)
    t.call("at the mark", t.far.recv, 100, socket.MSG_DONTWAIT)


@behaviour(guarded=True)
def low_water_mark(t: Scene) -> None:
    """SO_RCVLOWAT: not readable with less"""
    t.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8)
    send_all(t.near, b"1234")
    t.note("poll with 4 bytes", observe.events(t.far))
    send_all(t.near, b"5678")
    t.note("poll with 8 bytes", observe.events(t.far))
    t.call("recv", t.far.recv, 100)


@behaviour(guarded=True)
def low_water_mark_blocking(t: Scene) -> None:
    """SO_RCVLOWAT: a blocking recv() waits for that much"""
    t.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8)
    reader = t.blocked(t.far.recv, 100)
    send_all(t.near, b"1234")
    reader.wait_blocked_or_done()
    t.near.sendall(b"5678")
    t.note("recv", reader.result())


@behaviour()
def low_water_mark_set_late(t: Scene) -> None:
    """SO_RCVLOWAT, set with less than that unread"""
    send_all(t.near, b"1234")
    t.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8)
    t.note("poll with 4 bytes", observe.events(t.far))
    send_all(t.near, b"5678")
    t.note("poll with 8 bytes", observe.events(t.far))
    t.note("recv", read_exactly(t.far, 8))


@behaviour()
def low_water_mark_of_one(t: Scene) -> None:
    """SO_RCVLOWAT 1, the default, set by hand"""
    t.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    send_all(t.near, b"x")
    t.note("poll", observe.events(t.far))


@behaviour()
def receive_timeout(t: Scene) -> None:
    """SO_RCVTIMEO: EAGAIN when it ends, data when there is some before"""
    timeout(t.far, socket.SO_RCVTIMEO, 0.05)
    t.call("nothing comes", t.far.recv, 100)
    timeout(t.far, socket.SO_RCVTIMEO, 20)
    reader = t.blocked(t.far.recv, 100)
    t.near.sendall(b"data")
    t.note("data comes", reader.result())


@behaviour()
def send_timeout(t: Scene) -> None:
    """SO_SNDTIMEO: a sender without room gives up"""
    timeout(t.near, socket.SO_SNDTIMEO, 0.05)
    t.call("no room", t.near.sendall, pattern(0, 64 << 20))


@behaviour()
def receive_buffer(t: Scene) -> None:
    """SO_RCVBUF bounds what a reader leaves unread"""
    t.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    t.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    sent = fill(t.near, 8 << 20)
    t.note("taken", "less than 1 MiB" if sent < 1 << 20 else "1 MiB or more")
    t.note("stream", observe.same(read_exactly(t.far, sent), pattern(0, sent)))
    t.note("SO_RCVBUF", t.far.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))


@behaviour()
def fionread(t: Scene) -> None:
    """FIONREAD counts what can be read"""
    t.note("at first", unread(t.far))
    send_all(t.near, pattern(0, 1000), pattern(1000, 500))
    t.note("1500 bytes sent", unread(t.far))
    t.far.recv(700, socket.MSG_PEEK)
    t.note("700 peeked at", unread(t.far))
    read_exactly(t.far, 700)
    t.note("700 read", unread(t.far))
    read_exactly(t.far, 800)
    t.note("all read", unread(t.far))


@behaviour()
def fionread_while_leaving(t: Scene) -> None:
    """FIONREAD of a reader that is far behind: all of what is queued"""
    t.hold()
    sent = fill(t.near, BEHIND)

    def counted(read: int) -> str:
        # what is not acknowledged may be queued already
        return "all" if unread(t.far) + queued(t.near) >= sent - read else "a part"

    # how much of it was redirected is a matter of time, so the two answers are one
    at_first = counted(0)
    first = min(REDIRECTED, sent - 1000)
    stream = read_exactly(t.far, first)
    t.note("counted", "all" if at_first == counted(first) == "all" else "a part")
    stream += read_exactly(t.far, sent - first)
    t.note("stream", observe.same(stream, pattern(0, sent)))


@behaviour()
def fionread_at_the_end(t: Scene) -> None:
    """FIONREAD does not count the end of the stream"""
    send_all(t.near, b"data")
    t.near.close()
    wait_events(t.far, select.POLLRDHUP)
    t.note("with data", unread(t.far))
    t.call("recv", t.far.recv, 100)
    t.note("without", unread(t.far))


@behaviour()
def fionread_then_read(t: Scene) -> None:
    """reading as much as FIONREAD says (Java's available(), nginx)"""
    send_all(t.near, b"data")
    wait_events(t.far, select.POLLIN)
    t.call("recv", lambda: t.far.recv(unread(t.far) or 1))


@behaviour()
def at_mark(t: Scene) -> None:
    """SIOCATMARK without urgent data"""
    send_all(t.near, b"data")
    t.note("sockatmark", bool(_libc.sockatmark(t.far.fileno())))


@behaviour()
def message_details(t: Scene) -> None:
    """recvmsg() and recvfrom(): no address, no flags, no control data"""
    send_all(t.near, b"data")
    data, control, flags, address = t.far.recvmsg(100, 100)
    t.note("recvmsg", [bytes(data), len(control), flags, str(address)])
    send_all(t.near, b"data")
    t.note("recvfrom", str(t.far.recvfrom(100)))


@behaviour()
def files(t: Scene) -> None:
    """read() and write(), and no pread() or lseek()"""
    t.call("write", os.write, t.near.fileno(), b"data")
    delivered(t.near)
    t.call("pread", os.pread, t.far.fileno(), 100, 0)
    t.call("lseek", os.lseek, t.far.fileno(), 0, os.SEEK_CUR)
    t.call("read", os.read, t.far.fileno(), 100)


@behaviour(guarded=True)
def arrival_times(t: Scene) -> None:
    """SO_TIMESTAMP: recvmsg() tells when data arrived"""
    t.far.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
    for _ in range(STAMPED_AFTER):  # the kernel starts to stamp packets a moment later
        send_all(t.near, b"data")
        _, control, _, _ = t.far.recvmsg(100, 100)
        if control:
            break
    t.note("control message", [kind for _, kind, _ in control] == [SO_TIMESTAMP])


@behaviour(guarded=True)
def transmit_times(t: Scene) -> None:
    """SO_TIMESTAMPING: the error queue tells when data was acknowledged (gRPC)"""
    t.near.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, SOF_TIMESTAMPING)
    send_all(t.near, b"data")
    t.note("poll", observe.events(t.near))
    flags = socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
    t.call("error queue", lambda: len(t.near.recvmsg(100, 512, flags)[1]))


@behaviour(guarded=True)
def bytes_left(t: Scene) -> None:
    """TCP_INQ: recvmsg() tells how much is left (gRPC)"""
    t.far.setsockopt(socket.IPPROTO_TCP, TCP_INQ, 1)
    send_all(t.near, b"abcdef")
    data, control, _, _ = t.far.recvmsg(4, 100)
    left = [struct.unpack("i", raw)[0] for _, kind, raw in control if kind == TCP_CM_INQ]
    t.note("recvmsg", [bytes(data), left])


@behaviour()
def interleaved_with_poll(t: Scene) -> None:
    """a poll() loop that reads one byte at a time reads all of them"""
    t.near.sendall(b"abc")
    poll = select.poll()
    poll.register(t.far, select.POLLIN)
    data = b""
    while len(data) < 3 and poll.poll(10_000):
        data += t.far.recv(1)
    t.note("read", data)
    wait_for(lambda: observe.events(t.far) == "OUT", "end of the data")
    t.note("poll", observe.events(t.far))
