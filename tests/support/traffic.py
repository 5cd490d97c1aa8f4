"""TCP connections on loopback, and byte streams in which every position is recognisable."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import resource
import select
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)
CHUNK = 65536
_WRITABLE_AGAIN_MS = 100
_WORDS = 1_000_003  # prime: no chunk size of a test divides the period


def _period() -> bytes:
    words = array.array("I", range(_WORDS))
    words.byteswap()
    return words.tobytes()


_PATTERN = _period() * 2
_PERIOD = len(_PATTERN) // 2


def pattern(position: int, size: int) -> bytes:
    """Bytes `position` to `position + size` of the test stream: counting big-endian words."""
    start = position % _PERIOD
    data = _PATTERN[start : start + size]
    while len(data) < size:
        data += pattern(position + len(data), size - len(data))
    return data


def name(address: tuple[str, int]) -> str:
    """As sockredirctl writes it."""
    return f"{address[0]}:{address[1]}"


class Corrupted(AssertionError):
    """A stream did not arrive as it was sent."""


class Stream:
    """The receiving end of a test stream."""

    def __init__(self) -> None:
        self.position = 0

    def feed(self, data: bytes) -> None:
        wanted = pattern(self.position, len(data))
        if data != wanted:
            wrong = next(i for i, (a, b) in enumerate(zip(data, wanted, strict=True)) if a != b)
            at = self.position + wrong
            raise Corrupted(
                f"byte {at}: got {data[wrong : wrong + 16].hex()}, "
                f"sent {wanted[wrong : wrong + 16].hex()}"
            )
        self.position += len(data)

    def read(self, sock: socket.socket, size: int) -> None:
        """Receives exactly `size` bytes."""
        end = self.position + size
        while self.position < end:
            data = sock.recv(min(1 << 20, end - self.position))
            if not data:
                raise Corrupted(f"the stream ended at byte {self.position} of {end}")
            self.feed(data)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Unjudged, for what may be corrupted. MSG_WAITALL would do if a sockhash did not ignore it."""
    data = bytearray()
    while len(data) < size and (chunk := sock.recv(size - len(data))):
        data += chunk
    return bytes(data)


def read_to_end(sock: socket.socket) -> bytes:
    data = bytearray()
    while chunk := sock.recv(1 << 16):
        data += chunk
    return bytes(data)


def disconnect(sock: socket.socket) -> None:
    """connect(AF_UNSPEC), which Python's own connect() does not know."""
    if _libc.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@dataclass
class Connection:
    client: socket.socket
    server: socket.socket

    def close(self) -> None:
        self.client.close()
        self.server.close()


def many_descriptors() -> None:
    """As many files as this process may have open: connections by the hundreds take two each."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listen(address: str = "127.0.0.1", port: int = 0, *, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((address, port))
    listener.listen(4096)
    return listener


def free_port() -> int:
    with listen() as listener:
        port: int = listener.getsockname()[1]
        return port


def dial(
    listener: socket.socket,
    address: str = "127.0.0.1",
    *,
    protocol: int = 0,
    source_port: int = 0,
) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM, protocol)
    if source_port:
        # or its TIME_WAIT would keep the port from a listener of the next run
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((address, source_port))
    client.connect((address, listener.getsockname()[1]))
    return client


def set_nodelay(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def set_linger(sock: socket.socket, seconds: int) -> None:
    """With 0, close() resets the connection, and its addresses are free at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))


def connect(listener: socket.socket, address: str = "127.0.0.1") -> Connection:
    """A connection whose server end is accepted, so that the pair is complete or declined."""
    client = dial(listener, address)
    server, _ = listener.accept()
    for end in (client, server):
        set_nodelay(end)
    return Connection(client, server)


@contextmanager
def connection(address: str = "127.0.0.1") -> Iterator[Connection]:
    with listen(address) as listener:
        both = connect(listener, address)
    try:
        yield both
    finally:
        both.close()


def echo(both: Connection, rounds: int, size: int = 64) -> None:
    """`rounds` requests and answers, each one message, checked at both ends."""
    request, answer = Stream(), Stream()
    for i in range(rounds):
        data = pattern(i * size, size)
        both.client.sendall(data)
        request.read(both.server, size)
        both.server.sendall(data)
        answer.read(both.client, size)


def push(sock: socket.socket, limit: int, chunk: int = CHUNK) -> int:
    """Sends the test stream until TCP would block, or `limit` bytes; how many were sent."""
    sock.setblocking(False)
    writable = select.poll()
    writable.register(sock, select.POLLOUT)
    sent = 0
    try:
        while sent < limit:
            try:
                sent += sock.send(pattern(sent, min(chunk, limit - sent)))
            except BlockingIOError:
                # ACKs still on their way may make room
                if not writable.poll(_WRITABLE_AGAIN_MS):
                    break
    finally:
        sock.setblocking(True)
    return sent


def readable_bytes(sock: socket.socket) -> int:
    raw = fcntl.ioctl(sock, termios.FIONREAD, bytes(4))
    return int(struct.unpack("i", raw)[0])


def wait_readable(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(10_000):
        raise TimeoutError("nothing to read for 10 s")


def splice_from(sock: socket.socket, size: int) -> bytes:
    """What splice(2) moves from the socket; BlockingIOError where it finds nothing."""
    read_end, write_end = os.pipe()
    sock.setblocking(False)  # tcp_splice_read() looks at nothing else
    try:
        moved: int = os.splice(sock.fileno(), write_end, size)
        return os.read(read_end, moved) if moved else b""
    finally:
        sock.setblocking(True)
        os.close(read_end)
        os.close(write_end)


def check_native(sender: socket.socket, receiver: socket.socket) -> None:
    """Raises unless `receiver` does with TCP data what only a socket off the sockhash does."""
    data = pattern(0, 1000)
    sender.sendall(data)
    wait_readable(receiver)
    found = readable_bytes(receiver)
    if found != len(data):
        raise AssertionError(f"FIONREAD says {found} of {len(data)} bytes")
    if splice_from(receiver, len(data)) != data:
        raise AssertionError("splice(2) moved something else than was sent")
