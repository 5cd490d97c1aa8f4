"""A connection that is reset from outside: that one, and nothing else."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

import pytest

from sockredird.kernel import sockdiag
from sockredird.kernel.netlink import order
from support import processes
from support.topology import Namespace

WAYS = {
    "IPv4": (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
    "IPv6": (socket.AF_INET6, "::1", "::1"),
    "mapped listener": (socket.AF_INET6, "::", "127.0.0.1"),
    "wildcard": (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
}


def packed(name: str) -> bytes:
    ip = ip_address(name)
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed


def destroy(sock: socket.socket, peer: socket.socket) -> None:
    ends = (sock.getsockname(), peer.getsockname())
    (local, local_port), (remote, remote_port) = ((packed(end[0]), end[1]) for end in ends)
    sockdiag.destroy(local, local_port, remote, remote_port)


def listen(family: int, bound: str) -> socket.socket:
    listener = socket.socket(family)
    listener.bind((bound, 0))
    listener.listen()
    return listener


def connect(listener: socket.socket, dialled: str) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection((dialled, listener.getsockname()[1]), timeout=10)
    return client, listener.accept()[0]


def error_of(sock: socket.socket) -> int:
    try:
        sock.recv(1)
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize("end", ["server", "client"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_connection_and_not_its_listener(way: tuple[int, str, str], end: str) -> None:
    family, bound, dialled = way
    with listen(family, bound) as listener:
        client, server = connect(listener, dialled)
        mine, other = (server, client) if end == "server" else (client, server)
        name = mine.getsockname(), other.getsockname()
        destroy(mine, other)
        assert (error_of(mine), error_of(other)) == (errno.ECONNABORTED, errno.ECONNRESET)
        # again, while its sockets are still open, and when they are gone
        (local, local_port, *_), (remote, remote_port, *_) = name
        ends = (packed(local), local_port, packed(remote), remote_port)
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                sockdiag.destroy(*ends)
            client.close()
            server.close()
        for sock in connect(listener, dialled):
            sock.close()


def by_addresses_alone(local_port: int, remote_port: int) -> None:
    loopback = socket.inet_aton("127.0.0.1").ljust(16, b"\0")
    ports = [port.to_bytes(2, "big") for port in (local_port, remote_port)]
    request = sockdiag._REQUEST_OF_ONE.pack(
        *(socket.AF_INET, socket.IPPROTO_TCP, sockdiag._STATES),
        *(*ports, loopback, loopback, sockdiag._NO_COOKIE),
    )
    order(4, 21, request, "sock_diag")


def test_what_the_kernel_makes_of_addresses_alone() -> None:
    """It closes the listener: the reason for all of this."""

    def inside() -> None:
        Namespace().enter()
        with listen(socket.AF_INET, "127.0.0.1") as listener:
            by_addresses_alone(listener.getsockname()[1], 1)
            with pytest.raises(ConnectionRefusedError):
                connect(listener, "127.0.0.1")

    processes.run(inside)
