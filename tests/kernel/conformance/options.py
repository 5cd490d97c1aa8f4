"""Options, and what TCP tells of itself."""

from __future__ import annotations

import ctypes
import fcntl
import select
import socket
import struct

from kernel.conformance import observe
from kernel.conformance.catalogue import behaviour
from kernel.conformance.differences import TCP_ULP
from kernel.conformance.scene import Scene, delivered, queued, send_all, unread, wait_events
from support.traffic import pattern, read_exactly

STATES = {
    1: "ESTABLISHED",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    11: "CLOSING",
}
INFO_SIZE = 256
BYTES_ACKED, BYTES_RECEIVED = 120, 128  # offsets in struct tcp_info, linux/tcp.h
SIOCOUTQNSD = 0x894B
SO_COOKIE = 57
SO_INCOMING_NAPI_ID = 56
SO_MEMINFO = 55
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
TCP_RECV_QUEUE = 1
TCP_ZEROCOPY_RECEIVE = 35


def info(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_SIZE)


def state(sock: socket.socket) -> str:
    return STATES[info(sock)[0]]


def counts(sock: socket.socket) -> tuple[int, int]:
    """Bytes acknowledged by the peer, and received."""
    raw = info(sock)
    acked, received = (struct.unpack_from("Q", raw, at)[0] for at in (BYTES_ACKED, BYTES_RECEIVED))
    return acked, received


@behaviour()
def tcp_info_state(t: Scene) -> None:
    """TCP_INFO: the state, through the life of a connection"""
    t.near.sendall(b"data")
    read_exactly(t.far, 4)
    t.note("established", [state(t.near), state(t.far)])
    t.near.shutdown(socket.SHUT_WR)
    wait_events(t.far, select.POLLRDHUP)
    # tcp_ioctl() and the state in TCP_INFO are read without the lock under which the FIN's
    # acknowledgement is taken first and acted upon then; the rest of TCP_INFO is read with it.
    delivered(t.near)
    info(t.near)
    t.note("near half-closed", [state(t.near), state(t.far)])
    t.far.close()
    wait_events(t.near, select.POLLHUP)
    t.note("both", state(t.near))


@behaviour()
def tcp_info_bytes(t: Scene) -> None:
    """TCP_INFO: the bytes carried"""
    before = counts(t.near), counts(t.far)
    t.near.sendall(pattern(0, 1000))
    read_exactly(t.far, 1000)
    delivered(t.near)
    t.note("acknowledged", counts(t.near)[0] - before[0][0])
    t.note("received", counts(t.far)[1] - before[1][1])


@behaviour()
def out_queue(t: Scene) -> None:
    """SIOCOUTQ and SIOCOUTQNSD: nothing once all is delivered"""
    send_all(t.near, pattern(0, 1000))
    t.note("SIOCOUTQ", queued(t.near))
    t.note("SIOCOUTQNSD", struct.unpack("i", fcntl.ioctl(t.near, SIOCOUTQNSD, bytes(4)))[0])


@behaviour()
def no_delay(t: Scene) -> None:
    """TCP_NODELAY off (Nagle): all of it arrives"""
    t.near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    for number in range(20):
        t.near.send(pattern(number * 10, 10))
    t.note("stream", observe.same(read_exactly(t.far, 200), pattern(0, 200)))
    t.note("TCP_NODELAY", t.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@behaviour()
def cork(t: Scene) -> None:
    """TCP_CORK: all of it arrives when uncorked (nginx tcp_nopush)"""
    t.near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    t.near.send(b"head")
    t.near.send(b"body")
    t.near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    t.note("stream", read_exactly(t.far, 8))


@behaviour()
def corked(t: Scene) -> None:
    """TCP_CORK: a part waits for the rest (200 ms at the most)"""
    t.near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    t.near.send(b"head")
    t.note("peer", observe.events(t.far))


@behaviour()
def more_to_come(t: Scene) -> None:
    """MSG_MORE: a part waits for the rest (200 ms at the most)"""
    t.near.send(b"head", socket.MSG_MORE)
    t.note("peer", observe.events(t.far))
    t.near.send(b"body")
    t.note("stream", read_exactly(t.far, 8))


@behaviour()
def keepalive(t: Scene) -> None:
    """SO_KEEPALIVE and its times can be set, and the connection works on"""
    options = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 5000}
    for end in (t.near, t.far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, number in options.items():
            end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), number)
    send_all(t.near, b"data")
    t.call("recv", t.far.recv, 100)
    for name in options:
        option = getattr(socket, name)
        t.note(name, t.near.getsockopt(socket.IPPROTO_TCP, option))


@behaviour(redirects=False)
def addresses(t: Scene) -> None:
    """getsockname() and getpeername(): the two ends name each other"""
    t.note("near", t.near.getsockname() == t.far.getpeername())
    t.note("far", t.far.getsockname() == t.near.getpeername())
    t.far.close()
    wait_events(t.near, select.POLLRDHUP)
    t.note("after the peer's close", t.near.getpeername()[0])
    t.near.shutdown(socket.SHUT_RDWR)
    wait_events(t.near, select.POLLHUP)
    t.call("after both", lambda: t.near.getpeername()[0])


@behaviour()
def plain_getsockopt(t: Scene) -> None:
    """options that can be asked for"""
    send_all(t.near, b"data")
    for name in ("SO_ERROR", "SO_TYPE", "SO_PROTOCOL", "SO_DOMAIN", "SO_ACCEPTCONN", "SO_RCVLOWAT"):
        option = getattr(socket, name)
        t.note(name, t.far.getsockopt(socket.SOL_SOCKET, option))
    congestion = t.far.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    t.note("TCP_CONGESTION", congestion.rstrip(b"\0"))
    t.note("SO_COOKIE", any(t.far.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)))
    t.note("SO_MEMINFO", len(t.far.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 64)))


@behaviour()
def plain_setsockopt(t: Scene) -> None:
    """options that can be set on an established connection"""
    for level, name, number in (
        (socket.SOL_SOCKET, "SO_SNDBUF", 1 << 17),
        (socket.SOL_SOCKET, "SO_PRIORITY", 2),
        (socket.SOL_SOCKET, "SO_MARK", 7),
        (socket.SOL_SOCKET, "SO_REUSEADDR", 1),
        (socket.IPPROTO_IP, "IP_TOS", 0x10),
        (socket.IPPROTO_TCP, "TCP_QUICKACK", 1),
        (socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", 16384),
        (socket.IPPROTO_TCP, "TCP_LINGER2", 5),
    ):
        t.call(name, t.near.setsockopt, level, getattr(socket, name), number)
    t.call("TCP_CONGESTION", set_congestion, t.near)
    send_all(t.near, b"data")
    t.call("recv", t.far.recv, 100)


def set_congestion(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


@behaviour()
def not_sent_low_water_mark(t: Scene) -> None:
    """TCP_NOTSENT_LOWAT: writable while little waits to be sent"""
    t.near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 16384)
    send_all(t.near, pattern(0, 60_000))
    t.note("poll", observe.events(t.near))
    t.note("stream", observe.same(read_exactly(t.far, 60_000), pattern(0, 60_000)))


@behaviour(redirects=False)  # left to TCP, which times it
def user_timeout_with_a_stalled_reader(t: Scene) -> None:
    """TCP_USER_TIMEOUT does not end a connection whose reader only is slow"""
    t.near.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
    send_all(t.near, pattern(0, 60_000))
    t.note("stream", observe.same(read_exactly(t.far, 60_000), pattern(0, 60_000)))
    t.note("SO_ERROR", observe.pending_error(t.near))


@behaviour()
def upper_layer_protocol(t: Scene) -> None:
    """TCP_ULP "tls", after which a program uses kTLS if it could be set"""
    t.call("setsockopt", t.near.setsockopt, socket.IPPROTO_TCP, TCP_ULP, b"tls")
    t.near.sendall(b"data")
    t.note("stream", read_exactly(t.far, 4))


@behaviour()
def unknown_upper_layer_protocol(t: Scene) -> None:
    """TCP_ULP with a name that no kernel knows"""
    t.call("setsockopt", t.near.setsockopt, socket.IPPROTO_TCP, TCP_ULP, b"no-such")
    send_all(t.near, b"data")
    t.call("recv", t.far.recv, 100)


@behaviour()
def repair(t: Scene) -> None:
    """TCP_REPAIR (CRIU): the receive queue can be looked at, and the connection works on"""
    send_all(t.far, b"before")
    t.near.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    t.near.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)
    t.call("queue", t.near.recv, 100, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    t.near.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
    t.call("recv", t.near.recv, 100)
    t.near.sendall(b"after")
    t.note("peer", read_exactly(t.far, 5))


@behaviour(guarded=True)
def repair_sequence(t: Scene) -> None:
    """TCP_REPAIR: sequence numbers move with the data"""

    def sequence() -> int:
        t.near.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        t.near.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)
        number = t.near.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ)
        t.near.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
        return number

    before = sequence()
    t.far.sendall(pattern(0, 1000))
    read_exactly(t.near, 1000)
    t.note("moved by", (sequence() - before) % (1 << 32))


@behaviour()
def zerocopy_receive(t: Scene) -> None:
    """TCP_ZEROCOPY_RECEIVE: how much there is to be mapped or read"""
    send_all(t.far, pattern(0, 1000))
    request, size = ctypes.create_string_buffer(16), ctypes.c_uint(16)  # address 0, length 0
    option = (socket.IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, request, ctypes.byref(size))
    t.note("getsockopt", ctypes.CDLL(None).getsockopt(t.near.fileno(), *option))
    t.note("to be read", struct.unpack_from("QII", request.raw)[2])
    t.note("FIONREAD", unread(t.near))
