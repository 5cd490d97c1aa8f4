"""Programs that would notice if a direction went to TCP, or came back, at a wrong moment.

Each makes connections of its own for some seconds, checks every byte, and returns how many there
were. One that does not get what it waits for within STUCK_S raises.
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection as Channel
from pathlib import Path

from support import uring
from support.background import Background
from support.child import Child, receive_result, send_result
from support.emulated import PATIENCE
from support.forger import SEND_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR, TCP_REPAIR_QUEUE
from support.traffic import (
    Connection,
    Corrupted,
    Stream,
    connect,
    disconnect,
    free_port,
    listen,
    pattern,
    readable_bytes,
    set_linger,
    set_nodelay,
)
from support.uring import Ring
from support.waiting import eventually

KIB, MIB = 1 << 10, 1 << 20
STUCK_S = 10 * PATIENCE
RENEWED_S = 1.0  # what happens to a young connection happens often
FIONREAD_RENEWED_S = 0.2  # one that is read so leaves at its first message by TCP, on some kernels
BURSTS = (1, 100, 10 * KIB, 512 * KIB)  # within the first window, so that a part need not be forced
SMALL = 10 * KIB  # what TCP holds for a reader that waits for all of it
SIZES = (1, 64, 1000, 4 * KIB, 64 * KIB, 256 * KIB)
PAUSE_S = 0.0002  # between two looks of a reader that waits for more than poll(2) can tell

Dice = random.Random
Reader = Callable[[socket.socket, Stream, int, Dice], None]
Connect = Callable[[], Connection]
Attack = Callable[[Connect, int, float], int]


class Patience:
    """Raises once what is waited for does not come."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._until = time.monotonic() + STUCK_S

    def check(self) -> None:
        assert time.monotonic() < self._until, f"stuck: {self._what}"


def wait_for(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(STUCK_S * 1000), "stuck: nothing to read"


# -- readers: exactly `size` bytes -----------------------------------------------------------


def read_edges(sock: socket.socket, stream: Stream, size: int, dice: Dice) -> None:
    """On edges; takes a short read for the end of what there is, as epoll(7) allows."""
    sock.setblocking(False)
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN | select.EPOLLET)
        end = stream.position + size
        while stream.position < end:
            assert epoll.poll(STUCK_S), f"stuck at byte {stream.position} of {end}"
            while stream.position < end:
                wanted = dice.choice((512, 16 * KIB, MIB))
                try:
                    data = sock.recv(wanted)
                except BlockingIOError:
                    break
                stream.feed(data)
                if len(data) < wanted:
                    break
    sock.setblocking(True)


def read_polling(sock: socket.socket, stream: Stream, size: int, dice: Dice) -> None:
    """By recv(), recvmsg() into several buffers, or read()."""
    end = stream.position + size
    while stream.position < end:
        wait_for(sock)
        how = dice.randrange(3)
        wanted = min(dice.choice((1, 512, 64 * KIB)), end - stream.position)
        if how == 0:
            data = sock.recv(wanted)
        elif how == 1:
            first, second = bytearray(wanted // 2), bytearray(wanted - wanted // 2)
            got = sock.recvmsg_into([first, second])[0]
            data = bytes(first + second)[:got]
        else:
            data = os.read(sock.fileno(), wanted)
        assert data, "the stream ended"
        stream.feed(data)


def read_waiting_for(
    enough: Callable[[socket.socket, int], bool],
) -> Reader:
    """Waits until there is as much as it wants, then reads that."""

    def read(sock: socket.socket, stream: Stream, size: int, dice: Dice) -> None:
        end = stream.position + size
        while stream.position < end:
            wanted = min(dice.choice((1, 3000, 20_000)), end - stream.position)
            patience = Patience(f"{wanted} bytes at {stream.position} are not there")
            while not enough(sock, wanted):
                patience.check()
                wait_for(sock)
                time.sleep(PAUSE_S)
            while wanted:
                data = sock.recv(wanted)
                stream.feed(data)
                wanted -= len(data)

    return read


def peek(sock: socket.socket, wanted: int) -> bool:
    wait_for(sock)
    return len(sock.recv(wanted, socket.MSG_PEEK)) == wanted


def ask(sock: socket.socket, wanted: int) -> bool:
    return readable_bytes(sock) >= wanted


def read_all(sock: socket.socket, stream: Stream, size: int, dice: Dice) -> None:
    """MSG_WAITALL, which may be short on a member (docs/semantics.md)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", STUCK_S, 0))
    end = stream.position + size
    while stream.position < end:
        wanted = min(dice.choice((2, 5000, 100 * KIB)), end - stream.position)
        data = sock.recv(wanted, socket.MSG_WAITALL)
        assert data, "the stream ended"
        stream.feed(data)


# -- senders ---------------------------------------------------------------------------------


def send_from(sock: socket.socket, start: int, size: int, seed: float) -> None:
    """In all ways that there are to send."""
    dice = random.Random(seed)
    position = start
    while position < start + size:
        length = min(dice.choice(SIZES), start + size - position)
        data = pattern(position, length)
        last = position + length == start + size
        how = dice.randrange(8)
        if how == 0:
            half = length // 2
            sent = sock.sendmsg([data[:half], data[half:]])
            sock.sendall(data[sent:])
        elif how == 1 and not last:
            sock.sendall(data, socket.MSG_MORE)
        elif how == 2:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            sock.sendall(data)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        elif how == 3:
            with tempfile.TemporaryFile() as file:
                file.write(data)
                file.flush()
                sock.sendfile(file, 0, length)
        else:
            sock.sendall(data)
        position += length


# -- attacks ---------------------------------------------------------------------------------


def bursts(
    read: Reader,
    *,
    signals: bool = False,
    most: int = BURSTS[-1],
    renewed_s: float = RENEWED_S,
) -> Attack:
    """Bursts in both directions, one at a time."""

    def attack(connect: Connect, seed: int, seconds: float) -> int:
        total, dice = 0, random.Random(seed)
        if signals:
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with closing(connect()) as both:
                total += _bursts(
                    both, read, dice, min(deadline, time.monotonic() + renewed_s), most
                )
        signal.setitimer(signal.ITIMER_REAL, 0)
        return total

    return attack


def _bursts(both: Connection, read: Reader, dice: Dice, deadline: float, most: int) -> int:
    streams = {True: Stream(), False: Stream()}
    while time.monotonic() < deadline:
        forth = dice.random() < 0.5
        own, other = (both.client, both.server) if forth else (both.server, both.client)
        size, stream = min(dice.choice(BURSTS), most), streams[forth]
        start, number = stream.position, dice.randrange(1 << 30)
        if dice.random() < 0.5:  # signals interrupt the first thread, the one that reads or sends
            sender = Background(send_from, own, start, size, number)
            read(other, stream, size, random.Random(number))
            sender.join(STUCK_S)
        else:
            reader = Background(read, other, stream, size, random.Random(number))
            send_from(own, start, size, number)
            reader.join(STUCK_S)
    return streams[True].position + streams[False].position


def stopped_and_continued(connect: Connect, seed: int, seconds: float) -> int:
    """A reader, a process of its own, that is stopped and goes on (job control, a debugger)."""
    total, dice = 0, random.Random(seed)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        size = 4 * MIB
        with closing(connect()) as both, Child(_read_edges_in_child, both, size) as child:
            both.server.close()
            sender = Background(send_from, both.client, 0, size, dice.random())
            patience = Patience("the stopped reader does not go on")
            while not child.channel.poll(dice.uniform(0.001, 0.02)):
                patience.check()
                os.kill(child.pid, signal.SIGSTOP)
                time.sleep(dice.uniform(0.001, 0.01))
                os.kill(child.pid, signal.SIGCONT)
            assert receive_result(child.channel) == size
            sender.join(STUCK_S)
        total += size
    return total


def _read_edges_in_child(channel: Channel, both: Connection, size: int) -> None:
    both.client.close()
    stream = Stream()

    def read() -> int:
        read_edges(both.server, stream, size, random.Random(size))
        return stream.position

    send_result(channel, read)


RECORD = struct.Struct("!II56x")
FEW = 16  # records that are unread: a part of the first window
AHEAD = 1000  # records that are unread: send() need not wait, after which TCP, too, may part one


def several_senders(connect: Connect, seed: int, seconds: float) -> int:
    """Threads that send on one socket: what each has sent stays in order."""
    total, number = 0, 4
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        count = 3000
        with closing(connect()) as both:
            room = threading.Semaphore(AHEAD)
            senders = [
                Background(_send_records, both.client, one, count, room) for one in range(number)
            ]
            seen, data = [0] * number, b""
            both.server.settimeout(STUCK_S)
            while sum(seen) < number * count:
                data += both.server.recv(64 * KIB)
                whole = len(data) // RECORD.size * RECORD.size
                for sender, at in RECORD.iter_unpack(data[:whole]):
                    if at != seen[sender]:
                        raise Corrupted(f"of sender {sender}: {at}, not {seen[sender]}")
                    seen[sender] += 1
                    room.release()
                data = data[whole:]
            for thread in senders:
                thread.join(STUCK_S)
        total += number * count * RECORD.size
    return total


def _send_records(sock: socket.socket, sender: int, count: int, room: threading.Semaphore) -> None:
    for number in range(count):
        assert room.acquire(timeout=STUCK_S), "stuck: records are not read"
        sock.sendall(RECORD.pack(sender, number))


def several_readers(connect: Connect, seed: int, seconds: float) -> int:
    """Processes that read one socket, after poll(): each sees what it gets in order.

    No more is unread than a direction has room for, so that it goes to TCP by choice only. At a
    forced border order is not kept: a reader that saw TCP data, and waits for the lock while
    another takes that, gets TCP data that came behind what was redirected since.
    """
    total, number, count = 0, 3, 4000
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with closing(connect()) as both:
            both.server.setblocking(False)
            taken, took = os.pipe()
            readers = [Child(_read_records, both.server, both.client, took) for _ in range(number)]
            os.close(took)
            room = FEW
            for at in range(count):
                if not room:
                    assert select.select([taken], [], [], STUCK_S)[0], "stuck: records are not read"
                    room = len(os.read(taken, FEW))
                room -= 1
                both.client.sendall(RECORD.pack(0, at))
            os.close(taken)
            both.client.shutdown(socket.SHUT_WR)
            seen: list[int] = []
            for child in readers:
                assert child.channel.poll(STUCK_S), "stuck: a reader does not end"
                got = receive_result(child.channel)
                if got != sorted(got):
                    raise Corrupted("a reader got a later record before an earlier one")
                seen += got
                child.close()
            if sorted(seen) != list(range(count)):
                raise Corrupted(f"{len(seen)} records of {count}")
        total += count * RECORD.size
    return total


def _read_records(channel: Channel, sock: socket.socket, other: socket.socket, took: int) -> None:
    other.close()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def read() -> list[int]:
        seen = []
        while True:
            wait_for(sock)
            with suppress(BlockingIOError):
                data = sock.recv(RECORD.size)
                if not data:
                    return seen
                assert len(data) == RECORD.size
                seen.append(RECORD.unpack(data)[1])
                with suppress(BrokenPipeError):  # the last ones are not waited for
                    os.write(took, b"r")

    send_result(channel, read)


def half_closed(connect: Connect, seed: int, seconds: float) -> int:
    """One end is shut down after a burst, and the other goes on sending."""
    total, dice = 0, random.Random(seed)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with closing(connect()) as both:
            own, other = dice.sample([both.client, both.server], 2)
            for first, second in ((own, other), (other, own)):
                size = dice.choice((1, 1000, 300 * KIB))
                sender = Background(send_and_end, first, size, dice.random())
                stream = Stream()
                read_polling(second, stream, size, dice)
                wait_for(second)
                assert second.recv(1) == b""
                sender.join(STUCK_S)
                total += size
    return total


def send_and_end(sock: socket.socket, size: int, seed: float) -> None:
    send_from(sock, 0, size, seed)
    sock.shutdown(socket.SHUT_WR)


def read_prefix(sock: socket.socket, start: int = 0) -> int:
    """To the end or the reset: what comes is the beginning of what was sent; how much."""
    stream = Stream()
    stream.position = start
    sock.settimeout(STUCK_S)
    with suppress(ConnectionResetError):
        while data := sock.recv(64 * KIB):
            stream.feed(data)
    return stream.position - start


def reset(connect: Connect, seed: int, seconds: float) -> int:
    """One end resets the connection with data under way in both directions."""
    total, dice = 0, random.Random(seed)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with closing(connect()) as both:
            own, other = dice.sample([both.client, both.server], 2)
            reader = Background(read_prefix, other)
            for _ in range(dice.randrange(20)):
                other.send(b"x" * 100)
            sizes = [dice.choice((1, 100, 64 * KIB)) for _ in range(dice.randrange(1, 12))]
            position = 0
            for size in sizes:
                own.sendall(pattern(position, size))
                position += size
            set_linger(own, 0)
            own.close()
            got = reader.join(STUCK_S)
            assert got <= position
            total += got
    return total


def reconnected(connect: Connect, seed: int, seconds: float) -> int:
    """connect(AF_UNSPEC) with data unread, and on to another peer: nothing old is read there."""
    total, dice, number = 0, random.Random(seed), 0
    deadline = time.monotonic() + seconds
    with listen() as one, listen() as other, socket.socket() as client:
        while time.monotonic() < deadline:
            number += 1
            start = number * 77_777_777
            listener = dice.choice((one, other))
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                for end in (client, server):
                    set_nodelay(end)
                for _ in range(dice.randrange(1, 20)):
                    size = dice.choice((1, 100, 20 * KIB))
                    for own, peer in ((client, server), (server, client)):
                        stream = Stream()
                        stream.position = start
                        own.sendall(pattern(start, size))
                        read_polling(peer, stream, size, dice)
                    start += size
                    total += 2 * size
                for _ in range(dice.randrange(4)):
                    server.sendall(b"unread" * dice.choice((1, 1000)))
                disconnect(client)
    return total


def wrapped(connect: Connect, seed: int, seconds: float) -> int:
    """The client's sequence numbers pass 2^32 after some hundred KiB by TCP."""
    total, dice = 0, random.Random(seed)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with listen() as listener, socket.socket() as client:
            set_sequence(client, -dice.randrange(1, 200 * KIB))
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                both = Connection(client, server)
                until = min(deadline, time.monotonic() + RENEWED_S)
                total += _bursts(both, read_edges, dice, until, BURSTS[-1])
    return total


def set_sequence(sock: socket.socket, number: int) -> None:
    """The number of the SYN to come: tcp_v4_connect() takes one that is there."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, SEND_QUEUE)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, struct.pack("I", number % (1 << 32)))
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, struct.pack("i", -1))  # TCP_REPAIR_OFF_NO_WP


def ring_single(connect: Connect, seed: int, seconds: float) -> int:
    """RECV of io_uring, one after the other."""
    return _ring(connect, seed, seconds, multishot=False)


def ring_multishot(connect: Connect, seed: int, seconds: float) -> int:
    """Multishot RECV of io_uring, into provided buffers."""
    return _ring(connect, seed, seconds, multishot=True)


SLOT, SLOTS, GROUP = 4 * KIB, 8, 7


def _ring(connect: Connect, seed: int, seconds: float, *, multishot: bool) -> int:
    total, dice = 0, random.Random(seed)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with closing(connect()) as both:
            stream = Stream()
            size = 2 * MIB
            sender = Background(send_from, both.client, 0, size, dice.random())
            reader = Background(_read_multishot if multishot else _read_single, both, stream, size)
            sender.join(STUCK_S)
            reader.join(STUCK_S)
            total += size
    return total


def _read_single(both: Connection, stream: Stream, size: int) -> None:
    buffer = ctypes.create_string_buffer(64 * KIB)
    with closing(Ring()) as ring:
        while stream.position < size:
            where = uring.address(buffer)
            ring.submit(uring.RECV, both.server.fileno(), where, len(buffer))
            _, number, _ = ring.completion()
            assert number > 0, number
            stream.feed(buffer.raw[:number])


def _read_multishot(both: Connection, stream: Stream, size: int) -> None:
    pool = ctypes.create_string_buffer(SLOT * SLOTS)
    with closing(Ring()) as ring:
        armed = False

        def provide(slot: int, count: int) -> None:
            where = uring.address(pool) + slot * SLOT
            ring.submit(uring.PROVIDE_BUFFERS, count, where, SLOT, offset=slot, group=GROUP, mark=1)

        provide(0, SLOTS)
        while stream.position < size:
            if not armed:
                ring.submit(
                    uring.RECV,
                    both.server.fileno(),
                    priority=uring.RECV_MULTISHOT,
                    sqe_flags=uring.SQE_BUFFER_SELECT,
                    group=GROUP,
                    mark=2,
                )
                armed = True
            mark, number, flags = ring.completion()
            if mark == 1:
                assert number >= 0, number
                continue
            armed = bool(flags & uring.CQE_F_MORE)
            if number == -105:  # ENOBUFS: all are with us; they come back below
                continue
            assert number > 0, number
            slot = flags >> 16
            stream.feed(pool.raw[slot * SLOT : slot * SLOT + number])
            provide(slot, 1)


NGINX = """
daemon off; master_process off; pid {directory}/pid; error_log {directory}/log;
events {{ use epoll; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  client_max_body_size 0; client_body_buffer_size 8k; keepalive_requests 1000000;
  upstream echo {{ server 127.0.0.1:{upstream}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://echo; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


class _Echo(BaseHTTPRequestHandler):
    """Answers with the request's body; select(2) is before each read."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self._size = size = int(self.headers["Content-Length"])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(self.rfile.read(size))

    def log_message(self, *_: object) -> None:
        pass


def nginx(connect: Connect, seed: int, seconds: float) -> int:
    """nginx as a proxy: reads on edges, trusts short reads, asks FIONREAD, at both of its ends."""
    total, dice = 0, random.Random(seed)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        config = Path(directory, "nginx.conf")
        config.write_text(NGINX.format(directory=directory, upstream=server.server_port, port=port))
        with subprocess.Popen(["nginx", "-p", directory, "-c", config]) as process:
            try:
                eventually(lambda: _listens(port), "nginx listens")
                deadline = time.monotonic() + seconds
                while time.monotonic() < deadline:
                    with socket.create_connection(("127.0.0.1", port)) as client:
                        until = min(deadline, time.monotonic() + RENEWED_S)
                        while time.monotonic() < until:
                            total += _post(client, dice)
            finally:
                process.terminate()
    server.shutdown()
    return total


def _listens(port: int) -> bool:
    with suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def _post(client: socket.socket, dice: Dice) -> int:
    size = dice.choice((1, 1000, 20 * KIB, 300 * KIB))
    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
    sender = Background(send_from, client, 0, size, dice.random())
    data = b""
    while b"\r\n\r\n" not in data:
        wait_for(client)
        data += client.recv(100)
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    stream = Stream()
    stream.feed(rest)
    read_polling(client, stream, size - len(rest), dice)
    sender.join(STUCK_S)
    return 2 * size


ATTACKS: dict[str, Attack] = {
    "edges": bursts(read_edges),
    "polls": bursts(read_polling),
    "peeks": bursts(read_waiting_for(peek), most=SMALL),
    "FIONREAD": bursts(read_waiting_for(ask), most=SMALL, renewed_s=FIONREAD_RENEWED_S),
    "MSG_WAITALL": bursts(read_all),
    "signals": bursts(read_edges, signals=True),
    "SIGSTOP": stopped_and_continued,
    "several senders": several_senders,
    "several readers": several_readers,
    "half-close": half_closed,
    "reset": reset,
    "reconnect": reconnected,
    "sequence wrap": wrapped,
    "io_uring": ring_single,
    "io_uring multishot": ring_multishot,
    "nginx": nginx,
}
# At a forced border (carry/redirect.c: force_to_tcp()) who waits for more than is redirected waits
# for ever, and several readers lose the order. A busy machine makes some borders: a reader that
# loses its processor with the lock held.
NOT_FORCED = ("peeks", "FIONREAD", "several readers")
# Where the ends are in namespaces of their own, the daemon wakes nobody at a forced border, so
# readers on edges are left out; the rest makes connections on loopback.
EVERYWHERE = ("polls", "peeks", "FIONREAD", "several senders", "half-close", "reset", "io_uring")


def on(address: str) -> Connect:
    """Connections on loopback."""

    def make() -> Connection:
        with listen(address) as listener:
            return connect(listener, address)

    return make
