"""Sockets that lose something on a sockhash are never put on one (I6)."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support import cgroups, namespaces
from support.datapath import Datapath
from support.processes import inside, outside
from support.traffic import (
    Connection,
    check_native,
    connect,
    connection,
    dial,
    echo,
    listen,
    set_linger,
    set_nodelay,
)

SO_ZEROCOPY = 60
MSG_ZEROCOPY = 0x4000000
SO_EE_ORIGIN_ZEROCOPY = 5
IPPROTO_MPTCP = 262
PORTS = (20_101, 20_102)


def check_left_alone(generation: Generation, both: Connection, reasons: set[str]) -> None:
    assert generation.members.walk().entries == 0
    echo(both, 100)
    counters = {name: value for name, value in generation.counters().items() if value}
    assert counters.keys() == reasons
    assert generation.members.walk().entries == 0


def set_zerocopy(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)


def zerocopy_client(listener: socket.socket) -> Connection:
    client = socket.socket()
    set_zerocopy(client)
    client.connect(listener.getsockname())
    return Connection(client, listener.accept()[0])


def zerocopy_listener(listener: socket.socket) -> Connection:
    set_zerocopy(listener)  # what is accepted inherits it
    both = connect(listener)
    return Connection(both.server, both.client)


def completed_zerocopy_send(sock: socket.socket) -> bool:
    """Whether a MSG_ZEROCOPY send is followed by its completion on the error queue."""
    sock.send(b"x" * 50_000, MSG_ZEROCOPY)
    poll = select.poll()
    poll.register(sock, 0)  # the error queue raises POLLERR, which needs no asking
    if not poll.poll(1000):
        return False
    _data, control, _flags, _address = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
    errors = [struct.unpack_from("=IBBBB", data) for _level, _type, data in control]
    return any(error[1] == SO_EE_ORIGIN_ZEROCOPY for error in errors)


@inside()
def test_the_textbook_swallows_zerocopy_completions(cgroup: Path, datapath: Datapath) -> None:
    with listen() as listener:
        both = zerocopy_client(listener)
    assert completed_zerocopy_send(both.client) != datapath.is_textbook


@pytest.mark.parametrize("establish", [zerocopy_client, zerocopy_listener])
@inside()
def test_zerocopy(
    cgroup: Path, generation: Generation, establish: Callable[[socket.socket], Connection]
) -> None:
    with listen() as listener:
        both = establish(listener)
    check_left_alone(generation, both, {"declined_zerocopy"})
    assert generation.counters()["declined_zerocopy"] == 1
    check_native(both.client, both.server)
    check_native(both.server, both.client)
    assert completed_zerocopy_send(both.client)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(
    ("client_protocol", "server_protocol", "reason"),
    [
        (IPPROTO_MPTCP, IPPROTO_MPTCP, "declined_mptcp"),
        (IPPROTO_MPTCP, 0, "declined_mptcp"),
        (0, IPPROTO_MPTCP, "declined_kernel_socket"),
    ],
    ids=["both", "client", "server"],
)
@inside()
def test_mptcp(
    cgroup: Path,
    generation: Generation,
    address: str,
    client_protocol: int,
    server_protocol: int,
    reason: str,
) -> None:
    with listen(address, protocol=server_protocol) as listener:
        client = dial(listener, address, protocol=client_protocol)
        both = Connection(client, listener.accept()[0])
    for end in (both.client, both.server):
        set_nodelay(end)
    # a subflow is known by its ULP, the accepted one before it has that by being the kernel's own
    check_left_alone(generation, both, {reason})
    assert generation.counters()[reason] == 1


@inside()
def test_connection_to_itself(cgroup: Path, generation: Generation) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        set_nodelay(sock)
        sock.connect(sock.getsockname())
        # established by its own SYN, which is taken for a Fast Open
        check_left_alone(generation, Connection(sock, sock), {"declined_early_data"})
        check_native(sock, sock)


@inside()
def test_simultaneous_open(cgroup: Path, generation: Generation) -> None:
    """Two SYNs cross: no listener, and neither end is the accepting one."""
    namespaces.enter_network()
    first, second = (socket.socket() for _ in PORTS)
    for sock, port in zip((first, second), PORTS, strict=True):
        set_nodelay(sock)
        sock.bind(("127.0.0.1", port))
    first.setblocking(False)
    # nobody may answer the first SYN before the second is sent
    drop = ["INPUT", "-p", "tcp", "--dport", str(PORTS[1]), "-j", "DROP"]
    subprocess.run(["iptables", "-A", *drop], check=True)
    with pytest.raises(BlockingIOError):
        first.connect(("127.0.0.1", PORTS[1]))
    subprocess.run(["iptables", "-D", *drop], check=True)
    second.connect(("127.0.0.1", PORTS[0]))
    first.setblocking(True)
    assert first.getpeername() == second.getsockname()
    both = Connection(first, second)
    check_left_alone(generation, both, {"declined_peer_outside"})
    check_native(first, second)
    check_native(second, first)


def bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


@outside()
def test_an_answer_to_somebody_else(cgroup: Path, generation: Generation) -> None:
    """The same ports, first with the listener in scope and the client not, then turned round."""
    client_port, server_port = PORTS
    client_outside, listener_outside = bound(client_port), bound(server_port)
    cgroups.join(cgroup)
    client_inside, listener_inside = bound(client_port), bound(server_port)

    listener_inside.listen()
    client_outside.connect(("127.0.0.1", server_port))
    server, _ = listener_inside.accept()
    # no TIME_WAIT: the tuple is free at once
    set_linger(client_outside, 0)
    for sock in (client_outside, server, listener_inside):
        sock.close()

    listener_outside.listen()
    client_inside.connect(("127.0.0.1", server_port))
    both = Connection(client_inside, listener_outside.accept()[0])
    assert generation.members.walk().entries == 0
    check_native(both.server, both.client)
    assert generation.counters()["declined_peer_outside"] == 2


@inside()
def test_the_check_for_native_sockets_can_fail(cgroup: Path, datapath: Datapath) -> None:
    """Both datapaths put this pair on their sockhash, where it is not native."""
    with connection() as both, pytest.raises((AssertionError, BlockingIOError)):
        check_native(both.client, both.server)
