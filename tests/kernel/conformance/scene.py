"""What a behaviour is given: a connection in a known state, and helpers whose waits are bounded.

Runs in a forked child. What it notes goes to the parent at once, so that it is known if it hangs.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection as Channel
from pathlib import Path
from typing import Any

from kernel.conformance import observe
from kernel.conformance.catalogue import JOINED, LEFT, USED, Variant
from kernel.conformance.places import Plain
from support.background import Background
from support.child import Child
from support.traffic import pattern, read_exactly

WAIT_S = 20.0
CHUNK = 65536
SIOCOUTQ = termios.TIOCOUTQ


def _send_outcome(channel: Channel, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        answer = str(observe.outcome(function, *arguments))
    except BaseException:
        answer = traceback.format_exc()
    channel.send(answer)


class Process(Child):
    """A forked child of the behaviour; join() gives what its function returned."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(_send_outcome, function, *arguments)

    def join(self) -> str:
        """The outcome as text; empty if the child was killed."""
        text = ""
        with suppress(EOFError):
            text = self.channel.recv()
        self.wait()
        self.close()
        return text

    def wait_blocked(self) -> None:
        _wait_blocked(Path(f"/proc/{self.pid}"))

    def wait_signal(self) -> None:
        """Returns once a signal was taken, and the process sleeps again or has ended."""

        def taken() -> bool:
            status = Path(f"/proc/{self.pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
            return not pending and fields["State"][0] in "SZ"

        wait_for(taken, "end of the signal's delivery", Path(f"/proc/{self.pid}"))

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def _wait_blocked(task: Path) -> None:
    """Returns once a task sleeps in the kernel, other than for the interpreter's own locks."""

    def sleeps() -> bool:
        assert "\nState:\tZ" not in (task / "status").read_text(), "it has ended"
        place = (task / "wchan").read_text()
        return place != "0" and not place.startswith("futex")

    wait_for(sleeps, "sleep of a thread or process", task)


class Thread(Background):
    def wait_blocked(self) -> None:
        self.wait_blocked_or_done()
        assert self._thread.is_alive(), f"does not block: {self.result()}"

    def wait_blocked_or_done(self) -> None:
        place = Path(f"/proc/self/task/{self._thread.native_id}")
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            _wait_blocked(place)

    def result(self) -> Any:
        """What the function returned, or the name of the errno it met."""
        return observe.outcome(self.join)


class Scene:
    def __init__(self, channel: Channel, place: Plain) -> None:
        self._channel = channel
        self._connect = place.connect
        self._accelerated = place.accelerates
        self._kept: list[Any] = []

    # -- the connection ----------------------------------------------------------------------

    def establish(self, variant: Variant) -> None:
        """Sets `near` and `far`: what the behaviour acts on, and its peer."""
        both = self._connect()
        ends = (both.client, both.server)
        self.near, self.far = ends if variant.side == "client" else ends[::-1]
        if variant.state == USED:
            self._exchange()
        elif variant.state == LEFT:
            self._leave()
        elif variant.state == JOINED:
            self._leave()
            self._join()
        missing = self._ask("missing", (variant.state, both.client.getsockname()[1]))
        assert not missing, missing

    def _exchange(self) -> None:
        for sender, receiver in ((self.near, self.far), (self.far, self.near)) * 2:
            sender.sendall(pattern(0, 1000))
            assert read_exactly(receiver, 1000) == pattern(0, 1000)

    def _leave(self) -> None:
        self._exchange()
        if self._accelerated:
            self._ask("leave")

    def _join(self) -> None:
        """Carries messages between looks; then each direction begins with its second message."""
        if self._accelerated:
            while not self._ask("look"):
                self._exchange()
        self._exchange()

    def begin(self) -> None:
        """What is redirected from here on, the behaviour has sent."""
        self._ask("begin")

    def hold(self) -> None:
        """Nothing is taken off the sockhash from here on: the moment before, for looking at."""
        self._ask("hold")

    # -- noting down ---------------------------------------------------------------------------

    def note(self, what: str, value: object) -> None:
        self._channel.send(("note", what, observe.value(value)))

    def call(self, what: str, function: Callable[..., object], *arguments: Any) -> None:
        """Notes what the call returned, or its errno."""
        self.note(what, observe.outcome(function, *arguments))

    def _ask(self, what: str, value: object = None) -> Any:
        """The parent does it, which has the datapath in its hands."""
        self._channel.send((what, None, value))
        return self._channel.recv()

    # -- others who take part --------------------------------------------------------------------

    def thread(self, function: Callable[..., Any], *arguments: Any) -> Thread:
        return Thread(function, *arguments)

    def blocked(self, function: Callable[..., Any], *arguments: Any) -> Thread:
        """A thread that sleeps in the call."""
        thread = Thread(function, *arguments)
        thread.wait_blocked()
        return thread

    def blocked_or_done(self, function: Callable[..., Any], *arguments: Any) -> Thread:
        """A thread that sleeps in the call, or is back from it."""
        thread = Thread(function, *arguments)
        thread.wait_blocked_or_done()
        return thread

    def process(self, function: Callable[..., Any], *arguments: Any) -> Process:
        return Process(function, *arguments)

    def keep(self, thing: Any) -> Any:
        """Alive until the behaviour has ended, whatever refers to it."""
        self._kept.append(thing)
        return thing


# -- waiting for what is on its way -----------------------------------------------------------


def wait_for(condition: Callable[[], bool], what: str, task: Path | None = None) -> None:
    """For what the kernel tells nobody; `task`, in /proc, is whose state an error is to show."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            found = (task / "status").read_text() + (task / "wchan").read_text() if task else ""
            raise TimeoutError(f"no {what} within {WAIT_S:.0f} s\n{found}")
        time.sleep(0.0005)


def queued(sock: socket.socket) -> int:
    """Bytes sent that TCP still has, or were not acknowledged (SIOCOUTQ)."""
    return _ioctl(sock, SIOCOUTQ)


def unread(sock: socket.socket) -> int:
    return _ioctl(sock, termios.FIONREAD)


def _ioctl(sock: socket.socket, request: int) -> int:
    number = array.array("i", [-1])
    fcntl.ioctl(sock, request, number)
    return number[0]


def delivered(sender: socket.socket) -> None:
    """Returns when everything sent is in the peer's queue."""
    wait_for(lambda: queued(sender) == 0, "acknowledgement of what was sent")


def wait_events(sock: socket.socket, bits: int) -> None:
    """Returns once poll(2) reports all of `bits`."""
    poll = select.poll()
    poll.register(sock, bits)
    wait_for(lambda: any(found & bits == bits for _, found in poll.poll(100)), observe.mask(bits))


def send_all(sender: socket.socket, *pieces: bytes) -> None:
    """Each piece with a send() of its own, and all of them delivered."""
    for piece in pieces:
        sender.sendall(piece)
    delivered(sender)


def linger_0(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def fill(sock: socket.socket, limit: int = 64 << 20) -> int:
    """Sends the test stream until there is no room for long, or `limit` bytes; how many."""
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    sent = 0
    while sent < limit:
        try:
            sent += sock.send(pattern(sent, min(CHUNK, limit - sent)))
        except BlockingIOError:
            if not poll.poll(100):  # acknowledgements on their way may still make room
                break
    sock.setblocking(True)
    return sent


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)
