"""Everything at once that a user without privileges can try; runs in an Actor.

Each kind of attack is a thread that goes on at a rate of its own, whatever errors it meets.
"""

from __future__ import annotations

import ctypes
import resource
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

from support import cgroups
from support.daemon import raw
from support.daemon.users import NOBODY, become
from support.traffic import connect, listen, set_linger, splice_from

DESCRIPTORS = 1024
IDLE = 420  # connections with both ends here
SPILL = 6 << 20  # bytes, more than the window
NAME = b"\x1b[31mA\nB\x07\xff\x9b"  # of the process
TIMEOUT_S = 1.0
_PR_SET_NAME, _TCP_ULP = 15, 31

_done: Counter[str] = Counter()
_threads: list[threading.Thread] = []
_ending = threading.Event()
_held = ExitStack()


def confine(cgroup: Path, memory: Path | None) -> None:
    """From here on this is a process of user nobody, with few descriptors and little memory."""
    if memory is not None:
        cgroups.join(memory)
    cgroups.join(cgroup)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    become(NOBODY)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, NAME, 0, 0, 0)


def start(bus: str, scraped: int, victim: int) -> None:
    """`scraped`: the port of the scrape endpoint; `victim`: that of somebody else's server."""
    _ending.clear()
    _done.clear()
    for name, (rate, attack) in _attacks(bus, scraped, victim).items():
        _threads.append(threading.Thread(target=_repeat, args=(name, rate, attack), daemon=True))
        _threads[-1].start()


def stop() -> dict[str, int]:
    """How often each attack was made; closes what is held."""
    _ending.set()
    while _threads:
        _threads.pop().join(20)
    _held.close()
    return dict(_done)


def _attacks(bus: str, scraped: int, victim: int) -> dict[str, tuple[float, Callable[[], None]]]:
    """Times a second, and what is done then."""
    calls = partial(_call, bus)
    return {
        "idle connections": (100.0, _hold_idle),
        "large message": (0.2, partial(calls, "an", b"\1\0", 33_000_000)),
        "message of variants": (0.5, partial(calls, "av", b"\1y\0\7", 1_000_000)),
        "malformed calls": (5.0, partial(_malformed, bus)),
        "walks asked for": (10.0, partial(_stats, bus)),
        "scrapes": (10.0, partial(_scrape, scraped, b"GET /metrics HTTP/1.1\r\n\r\n")),
        "wrong scrapes": (10.0, partial(_scrape, scraped, b"\xff\x1b[31m\r\n\r\n")),
        "idle scrapes": (5.0, partial(_hold_scrape, scraped)),
        "short connections": (100.0, partial(_short, victim)),
        **{f"option: {name}": (10.0, partial(_use, victim, use)) for name, use in _USES.items()},
        "held with an option": (2.0, partial(_use, victim, _hold)),
        "learned listeners": (50.0, _be_learned),
        "refused": (100.0, refused),
        "half-closed": (50.0, half_closed),
        "reset": (50.0, reset),
        "spill": (2.0, partial(spill, SPILL, 0.3)),
    }


def _repeat(name: str, rate: float, attack: Callable[[], None]) -> None:
    due = time.monotonic()
    while not _ending.wait(max(due - time.monotonic(), 0)):
        due = max(due + 1 / rate, time.monotonic() - 1)  # it does not make up for more than that
        with suppress(OSError):
            attack()
            _done[name] += 1


def made(name: str) -> int:
    """How often an attack was made so far."""
    return _done[name]


# -- the bus ---------------------------------------------------------------------------------


def _call(bus: str, signature: str, element: bytes, size: int) -> None:
    with raw.Raw(bus) as connection:
        connection.send_array("Explain", 2, signature, element, size)
        connection.errors(1, 10)


def _malformed(bus: str) -> None:
    with raw.Raw(bus) as connection:
        for serial in range(2, 22):
            connection.send(raw.call("Stats", serial, "y" * serial, bytes(serial)))
        connection.send(raw.call("No\x1b[31m", 30))
        connection.errors(1, 5)


def _stats(bus: str) -> None:
    with raw.Raw(bus) as connection:
        for serial in range(2, 20):
            connection.send(raw.call("Stats", serial))
        connection.answers(18, 5)


# -- the scrape endpoint ---------------------------------------------------------------------


def _scrape(port: int, request: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(request)
        while connection.recv(65536):
            pass


_scrapes: list[socket.socket] = []


def _hold_scrape(port: int) -> None:
    """The last twenty are held, and send nothing."""
    _scrapes.append(_held.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT_S)))
    if len(_scrapes) > 20:
        _scrapes.pop(0).close()


# -- somebody else's server ------------------------------------------------------------------


def _ask(server: socket.socket) -> None:
    server.sendall(b"x" * 64)
    _wait(server)
    server.recv(64)


def _wait(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(1000 * TIMEOUT_S):
        raise TimeoutError


def _short(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as server:
        _ask(server)


def _use(port: int, use: Callable[[socket.socket], object]) -> None:
    """Uses a connection as no member of a sockhash can be, and resets it."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as server:
        _ask(server)
        with suppress(OSError):
            use(server)
        set_linger(server, 0)


def _receive(flags: int, server: socket.socket) -> None:
    server.sendall(b"x" * 64)
    _wait(server)
    server.recv(64, flags)


def _splice(server: socket.socket) -> None:
    server.sendall(b"x" * 64)
    _wait(server)
    splice_from(server, 64)


def _set(level: int, option: int, value: int | bytes, server: socket.socket) -> None:
    server.setsockopt(level, option, value)
    _ask(server)


def _hold(server: socket.socket) -> None:
    """Until a walk meets it, which those that end at once seldom live to see."""
    _set(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 64, server)
    _ending.wait(0.5)


_USES: dict[str, Callable[[socket.socket], object]] = {
    "SO_RCVLOWAT": partial(_set, socket.SOL_SOCKET, socket.SO_RCVLOWAT, 64),
    "SO_OOBINLINE": partial(_set, socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
    "TCP_ULP": partial(_set, socket.IPPROTO_TCP, _TCP_ULP, b"tls"),
    "MSG_OOB": lambda server: server.send(b"!", socket.MSG_OOB),
    "MSG_WAITALL": partial(_receive, socket.MSG_WAITALL),
    "MSG_TRUNC": partial(_receive, socket.MSG_TRUNC),
    "splice": _splice,
}


# -- his own connections ---------------------------------------------------------------------


def _hold_idle() -> None:
    if _done["idle connections"] < IDLE:
        with listen() as listener:
            _held.callback(connect(listener).close)


def _be_learned() -> None:
    """A server of his own asks for what no member of a sockhash can do."""
    with listen() as listener, closing(connect(listener)) as both:
        both.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 64)


def refused() -> None:
    """A client's SO_OOBINLINE: nothing is learned of it, and each asks for a walk."""
    with listen() as listener, closing(connect(listener)) as both:
        both.client.send(b"x")
        both.server.recv(1)
        both.client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        both.client.send(b"y")
        _wait(both.server)
        both.server.recv(1)
        set_linger(both.client, 0)


def half_closed() -> None:
    """With data that is unread meanwhile."""
    with listen() as listener, closing(connect(listener)) as both:
        both.client.send(b"x")
        both.server.send(b"y" * 1000)
        both.client.shutdown(socket.SHUT_WR)
        both.server.recv(1)
        both.client.recv(1000)
        set_linger(both.client, 0)


def reset() -> None:
    with listen() as listener, closing(connect(listener)) as both:
        both.client.send(b"x" * 1000)
        set_linger(both.client, 0)


def spill(size: int = 2 << 20, unread_s: float = 0.0) -> None:
    """More than the window is unread for a while, and the rest for ever."""
    with listen() as listener, closing(connect(listener)) as both:
        both.client.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(size >> 16):
                both.client.send(bytes(1 << 16))
        _ending.wait(unread_s)
        both.server.recv(1 << 16)
        set_linger(both.client, 0)
