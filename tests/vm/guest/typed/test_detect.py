"""Programs that need what no member of a sockhash can do: seen by fentry on Debian kernels.

A program that makes such calls from the start finds all that was sent, from its first connection
on. Of one that begins later at most one connection is reset; later ones run untouched, and
`learned` names who did what. FIONREAD is put right where the service may do that, and then its
users stay accelerated.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pair import READS_SHOWN
from serving import read_exactly, serving
from shell import sh
from status import BUSCTL, called, counters

DATA = os.urandom(300_000)
WORKS_AFTER = 2  # connections at the most
BEGINS_AFTER = READS_SHOWN + 2  # messages that are read
COUNTS_REDIRECTED_DATA = " tcp_bpf_ioctl\n" in Path("/proc/kallsyms").read_text()


def learned() -> dict[int, dict[str, Any]]:
    return {entry["port"]: entry for entry in called("Learned")}


@pytest.fixture(autouse=True)
def nothing_learned(enabled: None) -> Iterator[None]:
    sh(BUSCTL.format("call", "Forget s ''"))
    yield


def check_untouched_later(exchange: Callable[[], None], why: str, *ports: int) -> None:
    """`exchange` raises for a connection that does not work; it makes one to each of the ports."""
    for number in range(WORKS_AFTER):
        try:
            exchange()
            break
        except OSError as error:
            assert error.errno in (errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE), error
            assert number < WORKS_AFTER - 1, "not even the second connection works"
    for port in ports:
        until_learned(port)
        entry = learned()[port]
        assert entry["why"] == why
        assert entry["pid"] and entry["comm"]
    before = counters()
    for _ in range(5):
        exchange()
    after = counters()
    assert after["declined_learned"] == before["declined_learned"] + 5 * len(ports)
    assert after["redirected_messages"] == before["redirected_messages"]


CONNECTIONS = 5


def check_right(exchange: Callable[[], None], connections: int = CONNECTIONS) -> None:
    """Each connection is on the sockhash, the first one works too, and nothing is learned."""
    before = counters()
    for _ in range(connections):
        exchange()
    after = counters()
    assert learned() == {}
    made = after["accelerated_connections"] - before["accelerated_connections"]
    assert made >= connections
    assert after["declined_learned"] == before["declined_learned"]


def until_known(exchange: Callable[[], None]) -> None:
    """Until connections begin with redirected messages: those before them show how is read."""
    for _ in range(20):
        before = counters()["redirected_messages"]
        exchange()
        if counters()["redirected_messages"] - before >= 2:
            return
    raise AssertionError("no connection begins with redirected messages")


def until_harmed(exchange: Callable[[], None], port: int) -> None:
    """The first connections may be right, as their first messages go by TCP."""
    for _ in range(20):
        with suppress(OSError):
            exchange()
        if port in learned():
            return
    raise AssertionError("every connection works, and nothing is learned")


def until_learned(port: int) -> None:
    deadline = time.monotonic() + 60
    while port not in learned():
        assert time.monotonic() < deadline, f"port {port} is not learned"
        time.sleep(0.5)


def splice_all(source: socket.socket) -> bytes:
    """What Go's io.Copy and HAProxy do: poll, then splice."""
    read_end, write_end = os.pipe()
    data = b""
    source.setblocking(False)
    try:
        while True:
            try:
                moved = os.splice(source.fileno(), write_end, 1 << 16)  # type: ignore[attr-defined]
            except BlockingIOError:
                time.sleep(0.01)
                continue
            if not moved:
                return data
            data += os.read(read_end, moved)
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("early", [False, True], ids=["before data", "with data in the queue"])
def test_splice_from_the_start(early: bool) -> None:
    received: list[bytes] = []
    ready = threading.Event()

    def serve(server: socket.socket) -> None:
        if early:
            time.sleep(0.3)  # what is sent meanwhile waits
        else:
            threading.Timer(0.3, ready.set).start()
        received.append(splice_all(server))

    def exchange() -> None:
        received.clear()
        ready.clear()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            if not early:
                ready.wait(10)
            client.sendall(DATA)
            client.shutdown(socket.SHUT_WR)
            if client.recv(1):  # the end, or a reset
                raise AssertionError("nothing was sent")
        got = received[0] if received else b"nothing"
        assert got == DATA, f"{len(got)} bytes"

    with serving(serve) as port:
        check_right(exchange)


def test_splice_of_redirected_data() -> None:
    """By a program that has read by recv() before."""

    def serve(server: socket.socket) -> None:
        server.settimeout(60)  # it polls
        for _ in range(BEGINS_AFTER):
            read_exactly(server, 5)
            server.sendall(b"go on")
        time.sleep(0.3)  # what is sent meanwhile was redirected, and waits
        server.sendall(b"%d" % len(splice_all(server)))

    def exchange() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            for _ in range(BEGINS_AFTER):
                client.sendall(b"hello")
                read_exactly(client, 5)
            client.sendall(DATA[:1000])
            client.shutdown(socket.SHUT_WR)
            assert read_exactly(client, 4) == b"1000"

    with serving(serve) as port:
        check_untouched_later(exchange, "splice", port)


def test_what_a_client_does() -> None:
    """It counts for the connections of that user's clients, and for nobody else's."""

    def serve(server: socket.socket) -> None:
        server.sendall(b"hello")
        while ready(server) and (data := server.recv(100)):
            server.sendall(data)

    def ready(sock: socket.socket) -> bool:
        waiter = select.poll()
        waiter.register(sock, select.POLLIN)
        return bool(waiter.poll(30_000))

    def exchange(use: bool = True, after: int = BEGINS_AFTER) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            for number in range(after + 5):
                assert ready(client)
                assert client.recv(100, socket.MSG_TRUNC if use and number >= after else 0)
                client.sendall(b"x" * 50)

    with serving(serve) as port:
        check_right(lambda: exchange(after=0))
        exchange()  # with redirected data unread
        check_untouched_later(exchange, "trunc", port)
        assert learned()[port]["client_uid"] == os.geteuid() == 0
        before = counters()
        os.seteuid(65534)
        try:
            exchange(use=False)
        finally:
            os.seteuid(0)
        after = counters()
        assert after["redirected_messages"] >= before["redirected_messages"] + 8
        assert after["declined_learned"] == before["declined_learned"]


def test_wait_all() -> None:
    def serve(server: socket.socket) -> None:
        data = server.recv(len(DATA), socket.MSG_WAITALL)
        server.sendall(b"%d" % len(data))

    def exchange() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            time.sleep(0.2)  # it waits already
            for start in range(0, len(DATA), 50_000):
                client.sendall(DATA[start : start + 50_000])
            assert client.recv(100) == b"%d" % len(DATA)

    with serving(serve) as port:
        check_right(exchange)


def test_wait_all_of_what_is_there() -> None:
    """Frames that are there as a whole, which is what such programs mostly find."""

    def serve(server: socket.socket) -> None:
        server.settimeout(60)  # it polls
        for number in range(2 * BEGINS_AFTER):
            assert server.recv(8) == b"question"
            waiter = select.poll()
            waiter.register(server, select.POLLIN)
            server.sendall(b"go on")
            assert waiter.poll(30_000)
            flags = socket.MSG_WAITALL if number >= BEGINS_AFTER else 0
            assert server.recv(1000, flags) == DATA[:1000]

    def exchange() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            for _ in range(2 * BEGINS_AFTER):
                client.sendall(b"question")
                assert read_exactly(client, 5) == b"go on"
                client.sendall(DATA[:1000])

    with serving(serve) as port:
        before = counters()
        exchange()
        after = counters()
        assert after["retired_waitall"] == before["retired_waitall"]
        assert after["redirected_messages"] >= before["redirected_messages"] + 50
        assert port not in learned()


def test_out_of_band() -> None:
    def serve(server: socket.socket) -> None:
        server.sendall(b"hello")
        assert server.recv(1) == b"?"
        server.send(b"!", socket.MSG_OOB)
        server.recv(1)

    def exchange() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            assert read_exactly(client, 5) == b"hello"
            client.sendall(b"?")
            waiter = select.poll()
            waiter.register(client, select.POLLPRI)
            assert waiter.poll(30_000), "no urgent data"
            client.setblocking(True)  # with a timeout, recv() would wait for data in line
            assert client.recv(1, socket.MSG_OOB) == b"!"

    with serving(serve) as port:
        check_right(exchange)


SIGNALLED = """
import os, signal, socket, threading, time
signal.signal(signal.SIGUSR1, lambda *_: None)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    server, _ = listener.accept()
    server.sendall(b"ready")
    try:
        server.sendall(server.recv(100))
    except OSError as error:
        print(error, flush=True)
    server.close()
"""


def test_a_reader_woken_by_a_signal() -> None:
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", SIGNALLED], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())

        def exchange() -> None:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                read_exactly(client, 5)
                time.sleep(0.3)
                os.kill(process.pid, signal.SIGUSR1)
                time.sleep(0.3)
                client.sendall(b"x")
                read_exactly(client, 1)

        try:
            check_untouched_later(exchange, "woken", port)
        finally:
            process.kill()


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

    def serve(server: socket.socket) -> None:
        server.setblocking(False)  # who may sleep inside recv() is left on TCP
        server.sendall(b"ready")
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
            until_known(exchange)
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


@contextmanager
def running(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def connect(port: int) -> socket.socket:
    """To a program that has been started just now."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def test_go_copying_between_connections() -> None:
    """io.Copy splices from both connections as soon as they are there.

    With requests that are sent before it begins to copy, and after.
    """
    turns = itertools.count()

    def serve(server: socket.socket) -> None:
        read_exactly(server, 3)
        server.sendall(DATA)

    def exchange() -> None:
        with closing(connect(8103)) as client:
            if next(turns) % 2:
                time.sleep(0.1)
            client.sendall(b"get")
            assert read_exactly(client, len(DATA)) == DATA

    with (
        serving(serve) as upstream,
        running("/share/programs/copy", "127.0.0.1:8103", f"127.0.0.1:{upstream}"),
    ):
        check_right(exchange, connections=240)


def test_socket_proxyd() -> None:
    """systemd's proxy, which only splices."""

    def serve(server: socket.socket) -> None:
        read_exactly(server, 3)
        server.sendall(DATA)

    def exchange() -> None:
        with closing(connect(8105)) as client:
            client.sendall(b"get")
            assert read_exactly(client, len(DATA)) == DATA

    with (
        serving(serve) as upstream,
        running(
            *("systemd-socket-activate", "-l", "127.0.0.1:8105"),
            *("/lib/systemd/systemd-socket-proxyd", f"127.0.0.1:{upstream}"),
        ),
    ):
        check_right(exchange, connections=100)


HAPROXY = """
defaults
    mode tcp
    timeout connect 20s
    timeout client 60s
    timeout server 60s
    option splice-auto
    option splice-request
    option splice-response
listen proxy
    bind 127.0.0.1:8100
    server one 127.0.0.1:8101
"""


def test_haproxy_with_splicing(tmp_path: Path) -> None:
    """As much as makes it splice: it begins with recv(), and goes over when there is much."""
    config = tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY)
    big = DATA * 20

    def serve(server: socket.socket) -> None:
        read_exactly(server, 3)
        server.sendall(big)

    def exchange() -> None:
        with closing(connect(8100)) as client:
            client.sendall(b"get")
            assert read_exactly(client, len(big)) == big

    with socket.create_server(("127.0.0.1", 8101)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    server, _ = listener.accept()
                    with server, suppress(OSError):
                        serve(server)

        threading.Thread(target=accept, daemon=True).start()
        with running("haproxy", "-d", "-f", str(config)):
            in_a_row, errors = 0, []
            for _ in range(30):
                try:
                    exchange()
                    in_a_row += 1
                except OSError as error:
                    in_a_row = 0
                    errors.append(error)
            print(f"haproxy: {errors}")
            # the first that is spliced with redirected data unread, to either of the two listeners
            assert len(errors) <= 2, errors
            assert in_a_row >= 5
            for entry in learned().values():
                assert (entry["why"], entry["comm"]) == ("splice", "haproxy")
        listener.shutdown(socket.SHUT_RDWR)


def test_openssl_with_kernel_tls(tmp_path: Path) -> None:
    if "-ktls" not in sh("openssl s_server -help"):
        pytest.skip("this distribution's OpenSSL is built without kernel TLS")
    sh("modprobe tls")
    sh(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 2 "
        f"-keyout {tmp_path}/key -out {tmp_path}/certificate"
    )
    options = f"-cert {tmp_path}/certificate -key {tmp_path}/key -ktls -quiet"
    (tmp_path / "page").write_bytes(DATA)
    command = f"cd {tmp_path} && exec openssl s_server -accept 127.0.0.1:8102 -WWW {options}"
    with running("bash", "-c", command):
        connect(8102).close()
        before = counters()
        for _ in range(4):
            sh(
                "printf 'GET /page HTTP/1.0\\r\\n\\r\\n' "
                "| timeout 60 openssl s_client -ktls -quiet "
                f"-connect 127.0.0.1:8102 -ign_eof 2>/dev/null | tail -c {len(DATA)} "
                f"| cmp - {tmp_path}/page"
            )
        entry = learned().get(8102)
        after = counters()
    # it sleeps inside recv(): the pair may have left for that before the program asks for kTLS
    left = ("declined_learned", "retired_ulp", "retired_blocking_reader")
    assert sum(after[name] - before[name] for name in left) >= 1
    assert after["retired_blocking_reader"] > before["retired_blocking_reader"] or entry
    assert entry is None or entry["why"] == "ulp"
