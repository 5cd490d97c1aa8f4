"""Order and bytes."""

from __future__ import annotations

import os
import select
import socket
import struct
from random import Random

from kernel.conformance import observe
from kernel.conformance.catalogue import behaviour
from kernel.conformance.scene import Scene, delivered, fill
from support.traffic import pattern, read_exactly, wait_readable

MIB = 1 << 20
IOV_MAX = 1024
THREADS = 4
MESSAGES = 50
MESSAGE = struct.Struct("=HH252s")


def _send_in_odd_sizes(sock: socket.socket, size: int) -> None:
    random = Random(1)
    sent = 0
    while sent < size:
        length = min(random.choice((1, 17, 4095, 4097, 65_537, 300_000)), size - sent)
        sock.sendall(pattern(sent, length))
        sent += length


def _read_in_odd_sizes(sock: socket.socket, size: int) -> bytes:
    random = Random(2)
    data = bytearray()
    while len(data) < size:
        wait_readable(sock)  # a thread that sends beside us would wake us inside recv()
        wanted = min(random.choice((1, 13, 4096, 65_537, MIB)), size - len(data))
        chunk = sock.recv(wanted)
        if not chunk:
            break
        data += chunk
    return bytes(data)


@behaviour()
def odd_sizes(t: Scene) -> None:
    """sends of 1 B to 300 KB, read in other sizes"""
    sender = t.thread(_send_in_odd_sizes, t.near, 2 * MIB)
    data = _read_in_odd_sizes(t.far, 2 * MIB)
    sender.join()
    t.note("stream", observe.same(data, pattern(0, 2 * MIB)))


@behaviour()
def both_directions_at_once(t: Scene) -> None:
    """two streams at once, one each way, in threads of their own"""
    senders = [t.thread(_send_in_odd_sizes, end, MIB) for end in (t.near, t.far)]
    readers = [t.thread(_read_in_odd_sizes, end, MIB) for end in (t.far, t.near)]
    for sender in senders:
        sender.join()
    t.note("streams", [observe.same(reader.join(), pattern(0, MIB)) for reader in readers])


def _send_messages(sock: socket.socket, number: int) -> None:
    for count in range(MESSAGES):
        sock.send(MESSAGE.pack(number, count, bytes([number]) * 252))


def _judge_messages(data: bytes) -> str:
    counts = [0] * THREADS
    for number, count, body in MESSAGE.iter_unpack(data):
        if number >= THREADS or body != bytes([number]) * 252:
            return "messages interleaved"
        if count != counts[number]:
            return "messages out of order"
        counts[number] += 1
    return "each message whole, in the order of its sender"


@behaviour()
def threads_send(t: Scene) -> None:
    """several threads send messages on one socket"""
    senders = [t.thread(_send_messages, t.near, number) for number in range(THREADS)]
    data = read_exactly(t.far, THREADS * MESSAGES * MESSAGE.size)
    for sender in senders:
        sender.join()
    t.note("received", _judge_messages(data))


@behaviour()
def processes_send(t: Scene) -> None:
    """several processes send messages on one inherited socket"""
    senders = [t.process(_send_messages, t.near, number) for number in range(THREADS)]
    data = read_exactly(t.far, THREADS * MESSAGES * MESSAGE.size)
    t.note("senders", [sender.join() for sender in senders])
    t.note("received", _judge_messages(data))


@behaviour()
def message_boundaries(t: Scene) -> None:
    """a stream has none: recv() takes what several sends left, or a part of one"""
    for piece in (b"abc", b"def", b"ghi"):
        t.near.send(piece)
    delivered(t.near)
    t.call("2 bytes", t.far.recv, 2)
    t.call("5 bytes", t.far.recv, 5)
    t.call("all there is", t.far.recv, 100)


@behaviour()
def iovecs(t: Scene) -> None:
    """sendmsg() and recvmsg() with IOV_MAX buffers, and one more"""
    pieces = [pattern(i * 50, 50) for i in range(IOV_MAX)]
    t.note("sendmsg", t.near.sendmsg(pieces))
    delivered(t.near)
    buffers = [bytearray(50) for _ in range(IOV_MAX)]
    t.note("recvmsg_into", t.far.recvmsg_into(buffers)[0])
    t.note("stream", observe.same(b"".join(buffers), b"".join(pieces)))
    t.call("one more", os.writev, t.near.fileno(), [b"x"] * (IOV_MAX + 1))


@behaviour()
def empty_iovecs(t: Scene) -> None:
    """empty buffers among the others"""
    t.call("writev", os.writev, t.near.fileno(), [b"", b"ab", b"", b"c", b""])
    delivered(t.near)
    empty, two, one = bytearray(), bytearray(2), bytearray(1)
    t.call("readv", os.readv, t.far.fileno(), [empty, two, empty, one])
    t.note("read", two + one)


@behaviour(redirects=False)
def empty_send(t: Scene) -> None:
    """sending nothing sends nothing"""
    t.call("send", t.near.send, b"")
    t.call("sendmsg", t.near.sendmsg, [b"", b""])
    t.note("peer", observe.events(t.far))
    t.call("peer's recv", t.far.recv, 1, socket.MSG_DONTWAIT)


def _recv_nothing(sock: socket.socket) -> int:
    # recv(0) of Python does not ask the kernel
    return sock.recvmsg_into([bytearray()], 0, socket.MSG_DONTWAIT)[0]


@behaviour()
def empty_recv(t: Scene) -> None:
    """recv() into nothing, with data there and without"""
    t.call("without data", _recv_nothing, t.far)
    t.near.sendall(b"x")
    delivered(t.near)
    t.call("with data", _recv_nothing, t.far)
    t.call("then", t.far.recv, 1)


@behaviour()
def large_send(t: Scene) -> None:
    """one blocking send of 8 MiB"""
    size = 8 * MIB
    sender = t.thread(t.near.send, pattern(0, size))
    data = read_exactly(t.far, size)
    t.note("sent", sender.join())
    t.note("stream", observe.same(data, pattern(0, size)))


@behaviour()
def large_nonblocking_send(t: Scene) -> None:
    """one non-blocking send of 32 MiB is taken in part, until the peer has read"""
    size = 32 * MIB
    t.near.setblocking(False)
    sent = t.near.send(pattern(0, size))
    t.note("taken", "a part" if 0 < sent < size else sent)
    data = read_exactly(t.far, sent)
    t.note("stream", observe.same(data, pattern(0, sent)))
    poll = select.poll()
    poll.register(t.near, select.POLLOUT)
    t.note("writable again", observe.mask(poll.poll()[0][1]))


@behaviour()
def stalled_reader(t: Scene) -> None:
    """a reader that does not read stops its sender, and loses nothing"""
    sent = fill(t.near)
    t.note("taken", "less than 64 MiB" if sent < 64 * MIB else sent)
    t.note("stream", observe.same(read_exactly(t.far, sent), pattern(0, sent)))


@behaviour()
def stalled_reader_of_bytes(t: Scene) -> None:
    """a reader that does not read messages of one byte stops their sender, too"""
    limit = 400_000
    t.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    t.near.setblocking(False)
    sent = 0
    try:
        while sent < limit:
            sent += t.near.send(pattern(sent, 1))
    except BlockingIOError:
        pass
    t.note("taken", "less than 400,000" if sent < limit else sent)
    t.note("stream", observe.same(read_exactly(t.far, sent), pattern(0, sent)))
