"""Programs that ask FIONREAD how much there is: put right where the service may do that."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from threading import Event

import pytest
from exchanges import (
    BEGINS_AFTER,
    check_untouched_later,
    connect,
    learned,
    running,
    until_harmed,
    until_known,
)
from ftrace import NEEDS_FENTRY
from serving import read_exactly, serving
from shell import sh
from status import BUSCTL, counters

pytestmark = [NEEDS_FENTRY, pytest.mark.usefixtures("nothing_learned")]

COUNTS_REDIRECTED_DATA = " tcp_bpf_ioctl\n" in Path("/proc/kallsyms").read_text()


def has_more(sock: socket.socket) -> bool:
    return fcntl.ioctl(sock, termios.FIONREAD, bytes(4)) != bytes(4)


def read_as_nginx(sock: socket.socket) -> bytes:
    """ngx_unix_recv(): on an edge, for as long as a full buffer and FIONREAD tell of more.

    Or to the end, once that is announced.
    """
    received, size = b"", 1024
    sock.setblocking(False)
    with select.epoll() as edges:
        edges.register(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        while not received.endswith(b"."):
            events = edges.poll(60)
            assert events, "no edge in a minute"
            ending = events[0][1] & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
            with suppress(BlockingIOError):
                received += (data := sock.recv(size))
                while len(data) == size and (ending or has_more(sock)):
                    received += (data := sock.recv(size))
                if not data:
                    return received
    return received


DROP_IN = Path("/etc/systemd/system/sockredird.service.d/fionread.conf")
PUT_RIGHT_OR_NOT = pytest.mark.parametrize(
    "put_right", [False, True], ids=["", "put right"], indirect=True
)


def begin_again() -> None:
    sh(BUSCTL.format("call", "Disable"))
    sh("systemctl daemon-reload && systemctl restart sockredird")
    sh(BUSCTL.format("call", "Enable"))


@pytest.fixture
def put_right_for_all() -> Iterator[None]:
    """With the capability that this takes, as sockredird(8) says."""
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text("[Service]\nCapabilityBoundingSet=CAP_SYS_ADMIN\n")
    begin_again()
    yield
    DROP_IN.unlink()
    begin_again()


@pytest.fixture
def put_right(request: pytest.FixtureRequest) -> bool:
    if request.param:
        request.getfixturevalue("put_right_for_all")
    return bool(request.param)


@PUT_RIGHT_OR_NOT
def test_fionread(put_right: bool) -> None:
    """Where it does not count redirected data, who believes it is not left waiting for ever."""
    question = b"x" * 10_000 + b"."
    is_late = Event()

    def serve(server: socket.socket) -> None:
        server.setblocking(False)  # who may sleep inside recv() is left on TCP
        server.sendall(b"ready")
        if is_late.is_set():
            time.sleep(0.5)  # so that all of it is there
        if read_as_nginx(server) == question:
            server.setblocking(True)
            server.sendall(b"answer")

    def exchange() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            read_exactly(client, 5)
            client.sendall(question)
            read_exactly(client, 6)

    with serving(serve) as port:
        if COUNTS_REDIRECTED_DATA or put_right:
            # these messages go by TCP: who is late to read them is taken for one that is stuck
            until_known(exchange)
            is_late.set()
            before = counters()
            for _ in range(5):
                exchange()
            after = counters()
            # one that finds its reader inside recv() goes by TCP, and the direction begins later
            assert after["redirected_messages"] - before["redirected_messages"] >= 3 * 5 - 3
            for why in ("fionread", "tcp_unread"):
                assert after[f"retired_{why}"] == before[f"retired_{why}"]
            assert port not in learned()
        else:
            is_late.set()
            until_harmed(exchange, port)
            check_untouched_later(exchange, "fionread", port)


MESSAGES = [
    os.urandom(1000) for _ in range(100)
]  # more than the window at first: the rest is TCP's


def waiting(sock: socket.socket) -> int:
    raw = fcntl.ioctl(sock, termios.FIONREAD, bytes(4))
    return int.from_bytes(raw, sys.byteorder)


def read_when_all_is_there(sock: socket.socket, size: int) -> bytes:
    """Java's available(), until it tells of enough. Empty if it never does."""
    deadline = time.monotonic() + 30
    while waiting(sock) < size:
        if time.monotonic() > deadline:
            return b""
        time.sleep(0.05)
    return read_exactly(sock, size)


@PUT_RIGHT_OR_NOT
def test_a_reader_that_waits_until_all_is_there(put_right: bool) -> None:
    """A part of it was redirected, and the rest went by TCP."""
    data = b"".join(MESSAGES)

    def serve(server: socket.socket) -> None:
        server.settimeout(60)  # which makes it poll
        for _ in range(BEGINS_AFTER):
            read_exactly(server, 8)
            server.sendall(b"ready")
        server.sendall(b"right" if read_when_all_is_there(server, len(data)) == data else b"wrong")

    with serving(serve) as port:
        before = counters()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            for _ in range(BEGINS_AFTER):
                client.sendall(b"question")
                assert read_exactly(client, 5) == b"ready"
            for message in MESSAGES:
                client.sendall(message)
            try:
                answer = read_exactly(client, 5)
            except OSError:  # the guard has reset it
                answer = b""
        after = counters()
        assert answer == b"right" or not put_right
        assert after["redirected_messages"] - before["redirected_messages"] > 10
        if put_right:
            assert port not in learned()
            for why in ("fionread", "tcp_unread"):
                assert after[f"retired_{why}"] == before[f"retired_{why}"]


def test_check_tells_of_fionread(put_right_for_all: None) -> None:
    assert "puts the answer of FIONREAD right" in sh("sockredirctl check || true")


NGINX_REQUESTS, JAVA_REQUESTS = 10_000, 1000
NGINX = """
worker_processes 2;
error_log stderr crit;
pid {directory}/nginx.pid;
events {{ }}
http {{
    access_log off;
    keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:8120;
        location / {{ return 200 "hello"; }}
    }}
}}
"""


def ask_nginx(sock: socket.socket, number: int) -> None:
    """With headers of several times its first buffer, in two parts: the second may wait."""
    cookies = "".join(f"Cookie: {'c' * 900}={n}\r\n" for n in range(2 + number % 6))
    request = f"GET / HTTP/1.1\r\nHost: guest\r\n{cookies}\r\n".encode()
    middle = number * 131 % len(request)
    sock.sendall(request[:middle])
    sock.sendall(request[middle:])
    answer = b""
    while not answer.endswith(b"\r\n\r\nhello"):
        received = sock.recv(4096)
        if not received:
            raise ConnectionResetError
        answer += received


def many_requests(
    port: int, connections: int, requests: int, ask: Callable[[socket.socket, int], None]
) -> tuple[dict[str, int], int]:
    """What the counters went up by meanwhile, and how many connections broke.

    A stall is a timeout, which nobody catches.
    """
    broken = 0
    before = counters()
    with ExitStack() as stack:
        kept = [stack.enter_context(closing(connect(port))) for _ in range(connections)]
        for number in range(requests):
            try:
                ask(kept[number % connections], number)
            except ConnectionError:
                broken += 1
                kept[number % connections] = stack.enter_context(closing(connect(port)))
    return {name: value - before[name] for name, value in counters().items()}, broken


@PUT_RIGHT_OR_NOT
def test_nginx_with_large_headers(
    put_right: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(directory=tmp_path))
    with running("nginx", "-g", "daemon off;", "-c", str(config)):
        change, broken = many_requests(8120, 20, NGINX_REQUESTS, ask_nginx)
    redirected = change["redirected_messages"]
    with capsys.disabled():
        print(f"nginx: {NGINX_REQUESTS} requests, {redirected} redirected, {broken} broken")
    if COUNTS_REDIRECTED_DATA or put_right:
        assert broken == 0
        assert learned() == {}
        assert redirected > NGINX_REQUESTS  # of three for each request
        for why in ("fionread", "tcp_unread"):
            assert change[f"retired_{why}"] == 0
    assert broken <= 20


def ask_java(sock: socket.socket, number: int) -> None:
    """A length, and what is read once available() tells of all of it."""
    body = os.urandom(1 + number * 131 % 3000)
    middle = number % len(body)
    sock.sendall(len(body).to_bytes(4, "big") + body[:middle])
    sock.sendall(body[middle:])
    assert read_exactly(sock, len(body)) == body


def test_available_of_java() -> None:
    """It asks FIONREAD until enough is there: it never polls, nor does it sleep inside recv().

    On few connections, as each has a thread that looks a thousand times a second.
    """
    with running("java", "-cp", "/share/programs", "Available", "8121"):
        change, broken = many_requests(8121, 4, JAVA_REQUESTS, ask_java)
    assert broken == 0
    assert learned() == {}
    # it is left on TCP, unless it finds what is redirected
    redirected = COUNTS_REDIRECTED_DATA and change["redirected_messages"] > 0
    assert redirected or change["retired_blocking_reader"] >= 4
