"""The other end of sd_notify(3): keeps what a daemon says until the test asks."""

from __future__ import annotations

import itertools
import os
import socket
import time
from multiprocessing.connection import Connection as Channel
from multiprocessing.connection import wait

from support.child import Child

_END = "the test has heard all"
_numbers = itertools.count()


def _pass_on(channel: Channel, receiver: socket.socket) -> None:
    while True:
        channel.send(receiver.recv(1 << 16).decode())


class NotifySocket:
    """A child reads the datagrams, as systemd would: a sender blocks once ten are unread."""

    def __init__(self) -> None:
        # abstract: paths of pytest's temporary directories are too long for a name
        self.address = f"@srt-notify-{os.getpid()}-{next(_numbers)}"
        self.messages: list[str] = []
        self._awaited = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind("\0" + self.address[1:])
            self._reader = Child(_pass_on, receiver)

    def wait_for(self, wanted: str, timeout: float, end: int) -> str | None:
        """The next message not awaited yet that has `wanted` as one of its lines.

        None after the timeout, or when pid file descriptor `end` says that the sender has ended.
        """
        deadline = time.monotonic() + timeout
        channel = self._reader.channel
        while True:
            while self._awaited < len(self.messages):
                self._awaited += 1
                if wanted in self.messages[self._awaited - 1].split("\n"):
                    return self.messages[self._awaited - 1]
            if channel not in wait([channel, end], max(0.0, deadline - time.monotonic())):
                return None
            self.messages.append(channel.recv())

    def hear_all(self) -> None:
        """Returns when everything sent so far is in `messages`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(_END.encode(), "\0" + self.address[1:])
        while _END not in self.messages:
            self.messages.append(self._reader.channel.recv())
        self.messages.remove(_END)

    def close(self) -> None:
        self._reader.close()
