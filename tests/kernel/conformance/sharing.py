"""Sockets that several processes have."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys

from kernel.conformance import observe
from kernel.conformance.catalogue import behaviour, establishing
from kernel.conformance.scene import Scene, send_all
from support.traffic import dial, listen, pattern, read_exactly, read_to_end

_libc = ctypes.CDLL(None, use_errno=True)
ECHO = "import sys; d = sys.stdin.buffer.read1(100); sys.stdout.buffer.write(d.upper())"


@behaviour()
def passed_with_data(t: Scene) -> None:
    """SCM_RIGHTS: a socket passed on with data in it"""
    send_all(t.near, b"unread")
    ours, theirs = socket.socketpair()

    def take() -> bytes:
        _, (descriptor,), _, _ = socket.recv_fds(theirs, 10, 1)
        with socket.socket(fileno=descriptor) as taken:
            taken.sendall(b"answer")
            return taken.recv(100)

    other = t.process(take)
    socket.send_fds(ours, [b"x"], [t.far.fileno()])
    t.far.close()
    t.note("other process", other.join())
    t.note("answer", read_to_end(t.near))


@behaviour()
def used_by_a_child(t: Scene) -> None:
    """a child of fork() reads, writes and exits; the connection stays"""

    def child() -> bytes:
        t.far.sendall(b"from the child")
        return read_exactly(t.far, 4)

    other = t.process(child)
    t.near.sendall(b"data")
    t.note("child", other.join())
    t.call("recv", t.near.recv, 100)
    send_all(t.near, b"more")
    t.call("parent", t.far.recv, 100)


@behaviour()
def duplicated(t: Scene) -> None:
    """dup(): the connection ends with the last descriptor"""
    copy = t.far.dup()
    t.far.close()
    send_all(t.near, b"data")
    t.call("recv", copy.recv, 100)
    t.call("nothing yet", t.near.recv, 1, socket.MSG_DONTWAIT)
    copy.close()
    t.call("end", t.near.recv, 1)


@behaviour()
def standard_streams(t: Scene) -> None:
    """a program started with the socket as its standard streams (inetd)"""
    command = [sys.executable, "-S", "-c", ECHO]
    child = subprocess.Popen(command, stdin=t.far, stdout=t.far)
    t.far.close()
    t.near.sendall(b"shout")
    t.note("answer", read_to_end(t.near))
    t.note("exit", child.wait())


@behaviour()
def taken_with_pidfd(t: Scene) -> None:
    """pidfd_getfd() of a socket (a debugger, CRIU)"""
    send_all(t.near, b"data")
    pidfd = os.pidfd_open(os.getpid())
    descriptor = _libc.syscall(438, pidfd, t.far.fileno(), 0)  # pidfd_getfd
    with socket.socket(fileno=descriptor) as taken:
        t.call("recv", taken.recv, 100)


@establishing(accelerated=4)
def accepted_by_workers(t: Scene) -> None:
    """processes that accept() on one inherited listener (pre-fork)"""
    with listen() as listener:

        def work() -> bytes:
            server, _ = listener.accept()
            with server:
                data = server.recv(100)
                server.sendall(data.upper())
            return data

        workers = [t.process(work) for _ in range(4)]
        answers = []
        for _ in workers:
            with dial(listener) as client:
                client.sendall(b"question")
                answers.append(read_to_end(client))
        t.note("answers", answers)
        t.note("workers", [worker.join() for worker in workers])


@establishing(accelerated=1)
def accepted_after_a_fork(t: Scene) -> None:
    """a connection accepted by a child, and used by its parent's other child"""
    ours, theirs = socket.socketpair()
    with listen() as listener:

        def accept() -> None:
            server, _ = listener.accept()
            socket.send_fds(theirs, [b"x"], [server.fileno()])

        acceptor = t.process(accept)
        with dial(listener) as client:
            client.sendall(pattern(0, 1000))
            _, (descriptor,), _, _ = socket.recv_fds(ours, 10, 1)
            t.note("acceptor", acceptor.join())
            with socket.socket(fileno=descriptor) as server:
                t.note("stream", observe.same(read_exactly(server, 1000), pattern(0, 1000)))
                server.sendall(b"answer")
                t.call("recv", client.recv, 100)


@establishing(accelerated=1)
def client_and_server_apart(t: Scene) -> None:
    """client and server in processes of their own"""
    with listen() as listener:

        def serve() -> bytes:
            server, _ = listener.accept()
            data = read_to_end(server)
            server.sendall(data[::-1])
            server.close()
            return data

        server = t.process(serve)
        with dial(listener) as client:
            client.sendall(b"abc")
            client.shutdown(socket.SHUT_WR)
            t.note("answer", read_to_end(client))
        t.note("server", server.join())
