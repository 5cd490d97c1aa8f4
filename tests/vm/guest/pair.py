"""A connection within this host."""

from __future__ import annotations

import socket
from types import TracebackType

MESSAGES = 50
# By TCP, to a program that no connection has shown to read by recv(2): bpf/carry/begin.h.
READS_SHOWN = 16
TIMEOUT_S = 60.0


class Pair:
    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            self.server = listener.accept()[0]
        for end in (self.client, self.server):
            end.settimeout(TIMEOUT_S)  # so it polls: who sleeps inside recv() is left on TCP
        self.send(READS_SHOWN)

    def send(self, messages: int = MESSAGES) -> None:
        """Messages from the client to the server."""
        for number in range(messages):
            message = b"%d" % number
            self.client.sendall(message)
            assert self.server.recv(100) == message

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.client.close()
        self.server.close()
