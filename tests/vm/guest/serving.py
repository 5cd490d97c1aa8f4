"""A server in a thread, for one connection after the other."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def serving(function: Callable[[socket.socket], None]) -> Iterator[int]:
    """A thread that serves one connection after the other; the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    server, _ = listener.accept()
                except OSError:
                    return
                with server, suppress(OSError):
                    function(server)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(20)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise ConnectionResetError(errno.ECONNRESET, f"the end after {len(data)} bytes")
        data += chunk
    return data
