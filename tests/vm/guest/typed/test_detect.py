"""Programs that need what no member of a sockhash can do: seen by fentry on Debian kernels.

A program that makes such calls from the start finds all that was sent, from its first connection
on. Of one that begins later at most one connection is reset; later ones run untouched, and
`learned` names who did what. FIONREAD is put right where the service may do that, and then its
users stay accelerated.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from exchanges import (
    BEGINS_AFTER,
    CONNECTIONS,
    check_right,
    check_untouched_later,
    connect,
    learned,
    running,
)
from ftrace import NEEDS_FENTRY
from serving import read_exactly, serving
from shell import sh
from status import counters

from conftest import import_from_checkout

pytestmark = [NEEDS_FENTRY, pytest.mark.usefixtures("nothing_learned")]

DATA = os.urandom(300_000)


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


def test_a_hijacked_connection() -> None:
    """As an HTTP server passes one on: the request by recv(), and all that follows by splice."""

    def serve(server: socket.socket) -> None:
        server.settimeout(60)  # it polls
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += server.recv(4096)
        server.sendall(b"go on")
        data = splice_all(server)
        server.setblocking(True)
        server.sendall(b"right" if data == DATA else b"wrong")

    def exchange() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET / HTTP/1.1\r\n")
            client.sendall(b"Upgrade: echo\r\n\r\n")
            assert read_exactly(client, 5) == b"go on"
            client.sendall(DATA)
            client.shutdown(socket.SHUT_WR)
            assert read_exactly(client, 5) == b"right"

    with serving(serve) as port:
        check_right(exchange)


def test_splice_by_io_uring() -> None:
    """From the start; the kernel takes the same way to the socket."""
    import_from_checkout()
    from support.uring import SPLICE, Ring

    nowhere = (1 << 64) - 1  # the offset of a pipe, or a socket

    def serve(server: socket.socket) -> None:
        ring, (read_end, write_end) = Ring(), os.pipe()
        data = b""
        while len(data) < len(DATA):
            ring.submit(
                *(SPLICE, write_end, nowhere, 1 << 16), offset=nowhere, splice_fd=server.fileno()
            )
            _, moved, _ = ring.completion()
            if moved <= 0:
                break
            data += os.read(read_end, moved)
        for end in (read_end, write_end):
            os.close(end)
        ring.close()
        server.sendall(b"right" if data == DATA else b"wrong")

    def exchange() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(DATA)
            assert read_exactly(client, 5) == b"right"

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
            for _ in range(CONNECTIONS):  # on a slow processor one may leave before it shows a poll
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


def check_proxy(
    port: int, command: Callable[[int], list[str]], connections: int = 100, data: bytes = DATA
) -> None:
    """Each connection through a proxy passes on a request, and its answer.

    With requests that are sent before the proxy begins to copy, and after. `command` starts it, for
    a server on that port.
    """
    turns = itertools.count()

    def serve(server: socket.socket) -> None:
        read_exactly(server, 3)
        server.sendall(data)

    def exchange() -> None:
        with closing(connect(port)) as client:
            if next(turns) % 2:
                time.sleep(0.1)
            client.sendall(b"get")
            assert read_exactly(client, len(data)) == data

    with serving(serve) as upstream, running(*command(upstream)):
        check_right(exchange, connections)


def test_go_copying_between_connections() -> None:
    """io.Copy splices from both connections as soon as they are there."""

    def command(upstream: int) -> list[str]:
        return ["/share/programs/copy", "127.0.0.1:8103", f"127.0.0.1:{upstream}"]

    check_proxy(8103, command, connections=240)


def test_docker_proxy() -> None:
    """What passes on a published port: by io.Copy, too."""

    def command(upstream: int) -> list[str]:
        where = "-host-ip 127.0.0.1 -host-port 8106 -container-ip 127.0.0.1 -container-port"
        # it tells its parent on descriptor 3 that it listens
        proxy = f"exec /share/programs/docker-proxy -proto tcp {where} {upstream} 3>/dev/null"
        return ["bash", "-c", proxy]

    check_proxy(8106, command)


def test_socket_proxyd() -> None:
    """systemd's proxy, which only splices."""

    def command(upstream: int) -> list[str]:
        listening = ["systemd-socket-activate", "-l", "127.0.0.1:8105"]
        return [*listening, "/lib/systemd/systemd-socket-proxyd", f"127.0.0.1:{upstream}"]

    check_proxy(8105, command)


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
    server one 127.0.0.1:{upstream}
"""


def test_haproxy_with_splicing(tmp_path: Path) -> None:
    """It reads most requests by recv(), and splices those that come late, and what is much."""
    config = tmp_path / "haproxy.cfg"

    def command(upstream: int) -> list[str]:
        config.write_text(HAPROXY.format(upstream=upstream))
        return ["haproxy", "-d", "-f", str(config)]

    check_proxy(8100, command, data=20 * DATA)


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
