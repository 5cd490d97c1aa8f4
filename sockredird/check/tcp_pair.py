"""TCP connections on loopback, and what a program sees of a socket, for exercise.py."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

PATIENCE_S = 2.0  # for data on loopback, which takes less than a hundredth of that
WORD = 8
_BYTES_SENT = struct.Struct("200xQ")  # struct tcp_info, include/uapi/linux/tcp.h


class NotTried(Exception):
    """The exercise could not be set up, so it shows nothing."""


@dataclass
class Pair:
    client: socket.socket
    server: socket.socket

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def ends(self) -> Iterator[tuple[str, socket.socket, socket.socket]]:
        """Both directions: name, sender, receiver."""
        yield "client", self.client, self.server
        yield "server", self.server, self.client


def message(number: int, size: int) -> bytes:
    """A message that repeats its number from the first byte to the last."""
    return (number.to_bytes(WORD, "big") * (size // WORD + 1))[:size]


def reserve() -> socket.socket:
    """A socket that holds a port: listen() may use it, and the kernel gives it to nobody else."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def listen(port: int, family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
    """A bound socket, on which the caller calls listen()."""
    listener = socket.socket(family, socket.SOCK_STREAM, protocol)
    listener.settimeout(PATIENCE_S)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
    return listener


def connect(listener: socket.socket) -> Pair:
    """Connects to `listener`. Raises NotTried on an error, which the datapath cannot cause."""
    client = socket.socket(listener.family, socket.SOCK_STREAM, listener.proto)
    client.settimeout(PATIENCE_S)
    try:
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    except OSError as error:
        client.close()
        raise NotTried(f"no connection to {listener.getsockname()[:2]}: {error}") from error
    server.settimeout(PATIENCE_S)
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Pair(client, server)


def new_pair(port: int, family: int = socket.AF_INET, protocol: int = 0) -> Pair:
    with closing(listen(port, family, protocol)) as listener:
        listener.listen()
        return connect(listener)


def read(sock: socket.socket, size: int) -> bytes:
    """Reads `size` bytes, or fewer if no more come in time or the stream ends."""
    data = bytearray()
    while len(data) < size:
        try:
            chunk = sock.recv(min(size - len(data), 1 << 18))
        except (TimeoutError, BlockingIOError):
            break
        if not chunk:
            break
        data += chunk
    return bytes(data)


def sent_by_tcp(sock: socket.socket) -> int:
    """How many bytes TCP has sent; redirected ones do not count."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(_BYTES_SENT.unpack_from(info.ljust(_BYTES_SENT.size, b"\0"))[0])


def readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(PATIENCE_S * 1000))


def fionread(sock: socket.socket) -> int:
    raw = fcntl.ioctl(sock, termios.FIONREAD, bytes(4))
    return int.from_bytes(raw, sys.byteorder)


def splice(sock: socket.socket, size: int) -> int:
    """How many bytes splice(2) takes from the socket, or -1 for EAGAIN."""
    read_end, write_end = os.pipe()
    try:
        # a socket with a timeout does not block in the kernel
        return os.splice(sock.fileno(), write_end, size)
    except BlockingIOError:
        return -1
    finally:
        os.close(read_end)
        os.close(write_end)


@contextmanager
def early_client(listener: socket.socket, data: bytes) -> Iterator[Pair]:
    """A client that has sent before the server end is accepted."""
    with socket.socket(listener.family, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            client.connect(listener.getsockname())
            client.sendall(data)
            server, _ = listener.accept()
        except OSError as error:
            raise NotTried(f"no deferred connection: {error}") from error
        with server:
            server.settimeout(PATIENCE_S)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Pair(client, server)
