"""Making connections."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess

from kernel.conformance import observe
from kernel.conformance.catalogue import establishing
from kernel.conformance.scene import Scene, delivered, linger_0, unread, wait_events
from support import namespaces
from support.kernel_facts import FIONREAD_OMITS_TCP
from support.traffic import (
    Connection,
    check_native,
    connect,
    dial,
    disconnect,
    echo,
    listen,
    pattern,
    read_exactly,
    read_to_end,
)

PORTS = (20_201, 20_202)
PAIRS = 200
_libc = ctypes.CDLL(None, use_errno=True)


def note_exchange(t: Scene, both: Connection) -> None:
    for sender, receiver in ((both.client, both.server), (both.server, both.client)):
        sender.sendall(pattern(0, 10_000))
        data = read_exactly(receiver, 10_000)
        side = "client" if sender is both.client else "server"
        t.note(f"from the {side}", observe.same(data, pattern(0, 10_000)))


@establishing(accelerated=1)
def ipv4(t: Scene) -> None:
    """IPv4, another loopback address"""
    with listen("127.0.0.2") as listener:
        both = connect(listener, "127.0.0.2")
    note_exchange(t, both)
    t.note("peers", [both.client.getpeername()[0], both.server.getpeername()[0]])


@establishing(accelerated=1)
def ipv6(t: Scene) -> None:
    """IPv6"""
    with listen("::1") as listener:
        both = connect(listener, "::1")
    note_exchange(t, both)
    t.note("peers", [both.client.getpeername()[0], both.server.getpeername()[0]])


@establishing(accelerated=1)
def ipv4_to_dual_stack(t: Scene) -> None:
    """IPv4 to an IPv6 listener"""
    with listen("::") as listener:
        both = connect(listener, "127.0.0.1")
    note_exchange(t, both)
    t.note("peers", [both.client.getpeername()[0], both.server.getpeername()[0]])


@establishing(accelerated=1)
def v4_mapped(t: Scene) -> None:
    """an IPv6 socket connects to a v4-mapped address"""
    with listen("127.0.0.1") as listener:
        client = dial(listener, "::ffff:127.0.0.1")
        both = Connection(client, listener.accept()[0])
    note_exchange(t, both)
    t.note("peers", [both.client.getpeername()[0], both.server.getpeername()[0]])


@establishing(accelerated=1)
def nonblocking_connect(t: Scene) -> None:
    """non-blocking connect(): EINPROGRESS, writable, SO_ERROR 0"""
    with listen() as listener, socket.socket() as client:
        client.setblocking(False)
        t.note("before", observe.events(client))
        t.call("connect", client.connect, listener.getsockname())
        wait_events(client, select.POLLOUT)
        t.note("SO_ERROR", observe.pending_error(client))
        t.call("connect again", client.connect, listener.getsockname())
        t.call("and again", client.connect, listener.getsockname())
        client.setblocking(True)
        note_exchange(t, Connection(client, listener.accept()[0]))


@establishing(accelerated=0, redirects=False)
def refused(t: Scene) -> None:
    """connect() to where nobody listens"""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with socket.socket() as client:
            t.call("connect", client.connect, unused.getsockname())
        with socket.socket() as client:
            client.setblocking(False)
            t.call("non-blocking", client.connect, unused.getsockname())
            wait_events(client, select.POLLERR)
            t.note("poll", observe.events(client))
            t.note("SO_ERROR", observe.pending_error(client))


@establishing(accelerated=1)
def data_before_accept(t: Scene) -> None:
    """the client sends, and closes, before the server calls accept()"""
    with listen() as listener:
        with dial(listener) as client:
            client.sendall(pattern(0, 10_000))
            t.note("listener", observe.events(listener))
        server, _ = listener.accept()
        t.note("stream", observe.same(read_to_end(server), pattern(0, 10_000)))


@establishing(accelerated=1)
def server_speaks_first(t: Scene) -> None:
    """the server greets (SSH, MySQL, SMTP)"""
    with listen() as listener:
        both = connect(listener)
    both.server.sendall(b"220 hello")
    t.call("greeting", both.client.recv, 100)
    both.client.sendall(b"EHLO")
    t.call("answer", both.server.recv, 100)


@establishing(accelerated=1)
def listener_closes_first(t: Scene) -> None:
    """a listener that closes leaves accepted connections alone"""
    with listen() as listener:
        both = connect(listener)
    note_exchange(t, both)


@establishing(accelerated=1)
def never_accepted(t: Scene) -> None:
    """a listener that closes resets what it has not accepted"""
    with listen() as listener:
        client = dial(listener)
        client.sendall(b"data")
    wait_events(client, select.POLLHUP)
    t.note("poll", observe.events(client))
    t.call("recv", client.recv, 100)
    t.call("recv again", client.recv, 100)


@establishing(accelerated=4)
def full_backlog(t: Scene) -> None:
    """more connections than the backlog has room for: all are served in the end"""
    namespaces.enter_network()
    with listen() as listener:
        listener.listen(2)  # room for three
        clients = []
        for number in range(4):
            client = socket.socket()
            client.setblocking(False)
            t.call(f"connect {number}", client.connect, listener.getsockname())
            clients.append(client)
        answers = []
        for client in clients:
            # the fourth has its SYN repeated after a second
            wait_events(client, select.POLLOUT)
            client.setblocking(True)
            server, _ = listener.accept()
            client.sendall(b"data")
            answers.append(read_exactly(server, 4))
            server.close()
        t.note("received", answers)


@establishing(accelerated=2)
def used_again(t: Scene) -> None:
    """connect(AF_UNSPEC) and connect() again: nothing of the first connection is left"""
    with listen() as listener:
        first = connect(listener)
        echo(first, 3)
        first.server.sendall(b"unread")
        delivered(first.server)
        t.call("disconnect", disconnect, first.client)
        t.note("FIONREAD", unread(first.client))
        t.call("recv", first.client.recv, 100)
        t.call("peer's send", first.server.send, b"x", socket.MSG_NOSIGNAL)
        t.call("connect", first.client.connect, listener.getsockname())
        note_exchange(t, Connection(first.client, listener.accept()[0]))


@establishing(accelerated=0, redirects=False)
def to_itself(t: Scene) -> None:
    """a socket connected to itself"""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        t.note("itself", sock.getpeername() == sock.getsockname())
        for number in range(5):
            sock.sendall(pattern(number * 100, 100))
        t.note("stream", observe.same(read_exactly(sock, 500), pattern(0, 500)))
        sock.shutdown(socket.SHUT_WR)
        t.call("end", sock.recv, 1)


@establishing(accelerated=0, redirects=False)
def simultaneous_open(t: Scene) -> None:
    """two SYNs that cross, with no listener"""
    namespaces.enter_network()
    first, second = (socket.socket() for _ in PORTS)
    for sock, port in zip((first, second), PORTS, strict=True):
        sock.bind(("127.0.0.1", port))
    first.setblocking(False)
    # nobody may answer the first SYN before the second is sent
    drop = ["INPUT", "-p", "tcp", "--dport", str(PORTS[1]), "-j", "DROP"]
    subprocess.run(["iptables", "-A", *drop], check=True)
    t.call("connect", first.connect, ("127.0.0.1", PORTS[1]))
    subprocess.run(["iptables", "-D", *drop], check=True)
    second.connect(("127.0.0.1", PORTS[0]))
    first.setblocking(True)
    note_exchange(t, Connection(first, second))
    check_native(first, second)


# its data comes before the pair is complete, bpf/pair/pair.c: has_early_data()
@establishing(accelerated=0 if FIONREAD_OMITS_TCP else 1, redirects=False)
def deferred_accept(t: Scene) -> None:
    """TCP_DEFER_ACCEPT: the connection comes with its first data (nginx, Apache)"""
    with listen() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        client = dial(listener)
        t.note("before data", observe.events(listener))
        client.sendall(b"first")
        server, _ = listener.accept()
        client.sendall(b"second")
        t.note("stream", read_exactly(server, 11))


@establishing(accelerated=0, redirects=False)
def fast_open(t: Scene) -> None:
    """TCP Fast Open: data in the SYN"""
    namespaces.enter_network()
    namespaces.allow_fast_open()
    with listen() as listener, socket.socket() as client:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        t.call("sendto", client.sendto, b"first", socket.MSG_FASTOPEN, listener.getsockname())
        client.sendall(b"second")
        server, _ = listener.accept()
        t.note("stream", read_exactly(server, 11))


@establishing(accelerated=1)
def time_wait(t: Scene) -> None:
    """TIME_WAIT: who closed first keeps the port busy, but for SO_REUSEADDR"""
    with listen() as listener:
        both = connect(listener)
        address = listener.getsockname()
    echo(both, 1)
    both.server.close()
    wait_events(both.client, select.POLLRDHUP)
    both.client.close()
    for reuse in (0, 1):
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            t.call(f"bind, SO_REUSEADDR {reuse}", again.bind, address)


@establishing(accelerated=2)
def same_ports_again(t: Scene) -> None:
    """a second connection between the same two ports, the first reset"""
    namespaces.enter_network()
    with listen("127.0.0.1", PORTS[0]) as listener:
        for number in range(2):
            client = dial(listener, source_port=PORTS[1])
            server, _ = listener.accept()
            client.sendall(pattern(number, 100))
            data = read_exactly(server, 100)
            t.note(f"connection {number}", observe.same(data, pattern(number, 100)))
            server.sendall(b"unread")
            linger_0(client)
            client.close()
            wait_events(server, select.POLLHUP)
            server.close()


@establishing(accelerated=8)
def reuse_port(t: Scene) -> None:
    """SO_REUSEPORT: connections are spread over listeners, and all are served"""
    listeners = []
    port = 0
    for _ in range(2):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        port = listener.getsockname()[1]
        listener.listen()
        listeners.append(listener)
    served = 0
    for _ in range(8):
        client = dial(listeners[0])
        found, _, _ = select.select(listeners, [], [])
        server, _ = found[0].accept()
        client.sendall(b"data")
        served += read_exactly(server, 4) == b"data"
    t.note("served", served)


@establishing(accelerated=PAIRS)
def many_connections(t: Scene) -> None:
    """many connections at once: what is sent on one arrives there"""
    with listen() as listener:
        pairs = [connect(listener) for _ in range(PAIRS)]
    for number, both in enumerate(pairs):
        both.client.sendall(pattern(number, 1000))
        both.server.sendall(pattern(number, 2000))
    right = sum(
        read_exactly(both.server, 1000) == pattern(number, 1000)
        and read_exactly(both.client, 2000) == pattern(number, 2000)
        for number, both in enumerate(pairs)
    )
    t.note("right", right)


@establishing(accelerated=1)
def inherited_options(t: Scene) -> None:
    """an accepted socket has the listener's options"""
    with listen() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = dial(listener)
        server, _ = listener.accept()
    client.sendall(b"data")
    t.call("recv", server.recv, 100)
    t.note("SO_KEEPALIVE", server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
    t.note("TCP_NODELAY", server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@establishing(accelerated=1)
def listening_after_use(t: Scene) -> None:
    """a socket that was connected becomes a listener"""
    with listen() as listener:
        both = connect(listener)
        echo(both, 2)
        disconnect(both.client)
    both.client.bind(("127.0.0.1", 0))
    both.client.listen()
    t.note("poll", observe.events(both.client))


@establishing(accelerated=1)
def shut_down_before_accept(t: Scene) -> None:
    """a client that has sent its request and half-closed before accept()"""
    with listen() as listener:
        client = dial(listener)
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        server, _ = listener.accept()
        t.note("request", read_to_end(server))
        server.sendall(b"answer")
        server.close()
        t.note("answer", read_to_end(client))


@establishing(accelerated=1)
def accept4_flags(t: Scene) -> None:
    """accept4(): SOCK_NONBLOCK and SOCK_CLOEXEC"""
    with listen() as listener:
        client = dial(listener)
        flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        descriptor = _libc.accept4(listener.fileno(), None, None, flags)
    with socket.socket(fileno=descriptor) as server:
        t.call("nothing there", server.recv, 100)
        t.note("blocking", os.get_blocking(descriptor))
        client.sendall(b"data")
        wait_events(server, select.POLLIN)
        t.call("recv", server.recv, 100)
