"""One sequence of calls on two connections at a time, of which one is plain TCP: they stay alike.

Other tests try what somebody thought of; here hypothesis thinks of it. All is done by one thread
that never blocks. After each call poll(2) has to say the same of both connections, as soon as what
is on its way has arrived. What is known to differ (differences.py) is kept out, call by call.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from hypothesis import strategies

from kernel.conformance import observe
from kernel.conformance.scene import pipe, unread
from support.emulated import PATIENCE
from support.traffic import Connection, disconnect, pattern, set_linger

# As much as any socket takes, unread, even in single bytes.
ROOM = 30_000
WAIT_S = 2.0 * PATIENCE
SIDES = (0, 1)  # client, server
SIZES = (1, 2, 3, 7, 100, 1448, 4000, 4096, 9000)
OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE),
    (socket.IPPROTO_TCP, socket.TCP_QUICKACK),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.SOL_SOCKET, 29),  # SO_TIMESTAMP
    (socket.SOL_SOCKET, 60),  # SO_ZEROCOPY
    (socket.IPPROTO_TCP, 36),  # TCP_INQ
)


class Differs(AssertionError):
    """The connections are not alike."""


@dataclass(frozen=True)
class Step:
    call: str
    side: int
    size: int


@dataclass
class End:
    """What is known of one end, of both connections alike."""

    sent: int = 0
    read: int = 0
    open: bool = True
    shut: set[int] = field(default_factory=set)
    # A reset that comes with data unread is reported twice: "told twice" in differences.py.
    told_twice: bool = False


class Twins:
    """`look` is called while something may have to be taken off the sockhash, as a daemon would."""

    def __init__(self, plain: Connection, other: Connection, look: Callable[[], bool]) -> None:
        self._sockets = [[both.client, both.server] for both in (plain, other)]
        for sockets in self._sockets:
            for sock in sockets:
                sock.setblocking(False)
        self._look = look
        self._ends = [End(), End()]
        self._reset = False

    def run(self, steps: list[Step]) -> None:
        """Raises Differs."""
        for step in steps:
            if self._ends[step.side].open:
                getattr(self, f"_{step.call}")(step.side, step.size)
                self._settle()

    def read_all(self) -> None:
        """Raises Differs."""
        self.run([Step("read", side, self._unread(side) + 1) for side in SIDES])

    def close(self) -> None:
        for sockets in self._sockets:
            for sock in sockets:
                sock.close()

    # -- both at a time ------------------------------------------------------------------------

    def _both(self, what: str, function: Callable[..., Any], side: int, *arguments: Any) -> Any:
        """What the call gave, which has to be the same."""
        plain, other = (
            observe.outcome(function, sockets[side], *arguments) for sockets in self._sockets
        )
        if plain != other:
            raise Differs(f"{what} at end {side}: {other}, and {plain} on plain TCP")
        return plain

    def _settle(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            plain, other = (
                [observe.events(s) if s.fileno() >= 0 else "closed" for s in sockets]
                for sockets in self._sockets
            )
            if plain == other:
                return
            if time.monotonic() > deadline:
                raise Differs(f"poll: {other}, and {plain} on plain TCP")
            self._look()

    # -- sending ---------------------------------------------------------------------------------

    def _unread(self, side: int) -> int:
        return self._ends[1 - side].sent - self._ends[side].read

    def _sent(self, what: str, side: int, size: int, function: Callable[..., int]) -> None:
        """`function` sends on a socket the data it is given."""
        end, peer = self._ends[side], self._ends[1 - side]
        if self._unread(1 - side) + size > ROOM:
            return
        if self._reset or not peer.open or peer.shut:
            end.told_twice |= self._unread(side) > 0 or bool(peer.shut)
            peer.told_twice = True
        result = self._both(what, function, side, pattern(end.sent, size))
        if isinstance(result, str) and end.told_twice:
            for sockets in self._sockets:
                observe.pending_error(sockets[side])
        arrives = peer.open and len(peer.shut) < 2 and not self._reset
        if isinstance(result, int) and arrives:
            end.sent += result

    def _send(self, side: int, size: int) -> None:
        self._sent("send", side, size, lambda sock, data: sock.send(data, socket.MSG_NOSIGNAL))

    def _sendmsg(self, side: int, size: int) -> None:
        def send(sock: socket.socket, data: bytes) -> int:
            parts = [data[: size // 3], b"", data[size // 3 :]]
            return sock.sendmsg(parts, [], socket.MSG_NOSIGNAL)

        self._sent("sendmsg", side, size, send)

    def _send_more(self, side: int, size: int) -> None:
        def send(sock: socket.socket, data: bytes) -> int:
            sent = sock.send(data[: size // 2], socket.MSG_NOSIGNAL | socket.MSG_MORE)
            return sent + sock.send(data[size // 2 :], socket.MSG_NOSIGNAL)

        if size > 1:  # of nothing: "nothing sent" in differences.py
            self._sent("send with MSG_MORE, send", side, size, send)

    def _splice_in(self, side: int, size: int) -> None:
        def splice(sock: socket.socket, data: bytes) -> int:
            with pipe() as (read_end, write_end):
                os.write(write_end, data)
                moved: int = os.splice(read_end, sock.fileno(), len(data))
                return moved

        self._sent("splice", side, size, splice)

    # -- receiving -------------------------------------------------------------------------------

    def _take(self, sock: socket.socket, side: int, size: int) -> list[Any]:
        """All up to `size`, whatever single calls give, and what ends it."""
        expected = min(size, self._unread(side))
        data, why = b"", "all"
        deadline = time.monotonic() + WAIT_S
        while len(data) < size:
            try:
                chunk = sock.recv(size - len(data))
            except BlockingIOError:
                if len(data) < expected and time.monotonic() < deadline:
                    self._look()
                    continue
                why = "EAGAIN"
                break
            except OSError as error:
                why = errno.errorcode[error.errno]
                break
            if not chunk:
                why = "end of file"
                break
            data += chunk
        return [len(data), observe.same(data, pattern(self._ends[side].read, len(data))), why]

    def _read(self, side: int, size: int) -> None:
        length, stream, _why = self._both("recv", self._take, side, side, size)
        assert stream == "intact", "plain TCP is what is right"
        self._ends[side].read += length

    def _peek(self, side: int, size: int) -> None:
        """A part may be behind the seam between redirected data and TCP's, but no first byte."""

        def peek(sock: socket.socket) -> Any:
            data = sock.recv(size, socket.MSG_PEEK)
            return observe.same(data, pattern(self._ends[side].read, len(data))) if data else ""

        self._both("MSG_PEEK", peek, side)

    def _fionread(self, side: int, _size: int) -> None:
        """At a border it counts the one or the other: "leaving" in differences.py."""
        if self._look():
            self._both("FIONREAD", unread, side)

    # -- the rest --------------------------------------------------------------------------------

    def _walk(self, _side: int, _size: int) -> None:
        self._look()

    def _option(self, side: int, number: int) -> None:
        level, name = OPTIONS[number % len(OPTIONS)]
        self._both(f"setsockopt {level} {name}", lambda sock: sock.setsockopt(level, name, 1), side)

    def _rcvlowat(self, side: int, size: int) -> None:
        """Not with data unread: "late" in differences.py."""
        if not self._unread(side):
            self._both(
                "SO_RCVLOWAT",
                lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size),
                side,
            )

    def _dup(self, side: int, _size: int) -> None:
        for sockets in self._sockets:
            original, sockets[side] = sockets[side], sockets[side].dup()
            original.close()

    def _so_error(self, side: int, _size: int) -> None:
        self._both("SO_ERROR", observe.pending_error, side)

    def _shutdown(self, side: int, number: int) -> None:
        how = (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)[number % 3]
        self._both(f"shutdown {how}", lambda sock: sock.shutdown(how), side)
        ways = {socket.SHUT_RD, socket.SHUT_WR}
        self._ends[side].shut |= ways if how == socket.SHUT_RDWR else {how}

    def _gone(self, side: int) -> None:
        self._ends[1 - side].told_twice |= self._unread(1 - side) > 0

    def _close(self, side: int, _size: int) -> None:
        """With nothing unread, or TCP resets: "reset" in differences.py."""
        if waiting := self._unread(side):
            self._read(side, waiting)
        self._gone(side)
        self._both("close", socket.socket.close, side)
        self._ends[side].open = False

    def _abort(self, side: int, _size: int) -> None:
        self._gone(side)
        self._both("SO_LINGER 0, close", lambda sock: (set_linger(sock, 0), sock.close()), side)
        self._ends[side].open = False
        self._reset = True

    def _disconnect(self, side: int, _size: int) -> None:
        """Of a live connection: "dead" in differences.py."""
        end, peer = self._ends[side], self._ends[1 - side]
        if self._reset or not peer.open or peer.shut or socket.SHUT_RD in end.shut:
            return
        self._gone(side)
        self._both("connect(AF_UNSPEC)", disconnect, side)
        self._reset = True
        peer.sent = end.read


TALK = ("send", "send", "read", "read", "sendmsg", "send_more", "splice_in", "peek", "fionread")
OTHERS = ("walk", "option", "rcvlowat", "dup", "so_error")
ENDS = ("shutdown", "close", "abort", "disconnect")


def steps(*, without: frozenset[str] = frozenset()) -> strategies.SearchStrategy[list[Step]]:
    """Some sequences are all talk: others end before much has been said."""

    def of(*calls: str) -> strategies.SearchStrategy[list[Step]]:
        step = strategies.builds(
            Step,
            strategies.sampled_from([call for call in calls if call not in without]),
            strategies.sampled_from(SIDES),
            strategies.sampled_from(SIZES),
        )
        # lists of lists are longer
        some = strategies.lists(step, min_size=1, max_size=15)
        return strategies.lists(some, min_size=1, max_size=15).map(lambda x: [*chain(*x)])

    return (
        of(*TALK) | of(*TALK, *TALK, *OTHERS) | of(*TALK, *TALK, *ENDS) | of(*TALK, *OTHERS, *ENDS)
    )
