"""The other end of sd_notify(3): keeps what a daemon says until the test asks."""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import time

_END = "the test has heard all"
_numbers = itertools.count()


class NotifySocket:
    """A child reads the datagrams, as systemd would: a sender blocks once ten are unread."""

    def __init__(self) -> None:
        # abstract: paths of pytest's temporary directories are too long for a name
        self.address = f"@srt-notify-{os.getpid()}-{next(_numbers)}"
        self.messages: list[str] = []
        self._awaited = 0
        self._partial = b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind("\0" + self.address[1:])
            self._pipe, theirs = os.pipe()
            self._pid = os.fork()
            if self._pid == 0:
                while True:
                    os.write(theirs, receiver.recv(1 << 16) + b"\0")
        os.close(theirs)

    def wait_for(self, wanted: str, timeout: float, end: int) -> str | None:
        """The next message not awaited yet that has `wanted` as one of its lines.

        None after the timeout, or when pid file descriptor `end` says that the sender has ended.
        """
        deadline = time.monotonic() + timeout
        while True:
            while self._awaited < len(self.messages):
                self._awaited += 1
                if wanted in self.messages[self._awaited - 1].split("\n"):
                    return self.messages[self._awaited - 1]
            poll = select.poll()
            poll.register(self._pipe, select.POLLIN)
            poll.register(end, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
            if self._pipe not in ready:
                return None
            self._read()

    def hear_all(self) -> None:
        """Returns when everything sent so far is in `messages`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(_END.encode(), "\0" + self.address[1:])
        while _END not in self.messages:
            self._read()
        self.messages.remove(_END)

    def _read(self) -> None:
        *whole, self._partial = (self._partial + os.read(self._pipe, 1 << 16)).split(b"\0")
        self.messages += [message.decode() for message in whole]

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._pipe)
