"""A process with a user and a network namespace of its own, in which it may do as it likes.

It has a connection whose sequence numbers, addresses and ports are those of another's: by
TCP_REPAIR alone, or with a real handshake, in which the client's initial number is chosen by
TCP_REPAIR and the server's by answering the SYN by hand, through a tun device.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection as Channel
from pathlib import Path

from support import namespaces, topology
from support.child import Child, receive_result, send_result

CLONE_NEWUSER = 0x10000000
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
RECV_QUEUE, SEND_QUEUE = 1, 2
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SYN, RST, ACK = 0x02, 0x04, 0x10


@dataclass(frozen=True)
class Numbers:
    """Of a connection: IPv4 addresses, ports, initial sequence numbers."""

    client: tuple[str, int]
    server: tuple[str, int]
    client_isn: int
    server_isn: int


def enter_namespaces() -> None:
    """The child is root in them, and unprivileged outside."""
    namespaces.unshare(CLONE_NEWUSER | namespaces.CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/self/{kind}").write_text("0 0 1")
    topology.run("ip", "link", "set", "lo", "up")


def _tcp(numbers: Numbers, *, from_server: bool, flags: int) -> bytes:
    """An IP packet with a TCP header and a right checksum."""
    ends = (numbers.client, numbers.server)
    (source, sport), (target, dport) = reversed(ends) if from_server else ends
    seq = numbers.server_isn if from_server else numbers.client_isn
    ack = (numbers.client_isn + 1) % (1 << 32) if flags & ACK else 0
    tcp = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 65535, 0, 0)
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    check = _checksum(addresses + struct.pack("!HH", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + addresses
    return ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:] + tcp


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def _set_sequence(sock: socket.socket, queue: int, number: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, struct.pack("I", number % (1 << 32)))


class Forger:
    """In the calling process."""

    def __init__(self, numbers: Numbers) -> None:
        enter_namespaces()
        self._numbers = numbers
        self._tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._tun, TUNSETIFF, struct.pack("16sH", b"tun", IFF_TUN | IFF_NO_PI))
        topology.run("ip", "link", "set", "tun", "up")
        client, server = numbers.client[0], numbers.server[0]
        if not client.startswith("127."):
            topology.run("ip", "address", "add", f"{client}/32", "dev", "lo")
        if client != server:
            topology.run("ip", "route", "add", f"{server}/32", "dev", "tun", "src", client)

    def have_a_syn_answered(self) -> None:
        """By a listener of its own, in scope like this process: a SYN from the client's address."""
        ip = self._numbers.client[0]
        with socket.socket() as listener:
            listener.bind((ip, 0))
            listener.listen()
            syn = Numbers(self._numbers.client, listener.getsockname(), 1, 0)
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                raw.sendto(_tcp(syn, from_server=False, flags=SYN), (ip, 0))

    def _bound(self) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(self._numbers.client)
        return sock

    def repaired(self) -> socket.socket:
        """Established without a packet; then made a socket like any other."""
        sock = self._bound()
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        _set_sequence(sock, SEND_QUEUE, self._numbers.client_isn + 1)
        _set_sequence(sock, RECV_QUEUE, self._numbers.server_isn + 1)
        sock.connect(self._numbers.server)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
        return sock

    def chosen(self) -> socket.socket:
        """By a handshake, both of whose numbers are chosen."""
        sock = self._bound()
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        _set_sequence(sock, SEND_QUEUE, self._numbers.client_isn)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect(self._numbers.server)
        while True:  # the kernel says more on a new device than this SYN
            packet = os.read(self._tun, 4096)
            if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP and packet[33] & SYN:
                break
        assert struct.unpack("!I", packet[24:28])[0] == self._numbers.client_isn
        os.write(self._tun, _tcp(self._numbers, from_server=True, flags=SYN | ACK))
        assert os.read(self._tun, 4096)[33] & ACK
        sock.setblocking(True)
        return sock

    def loot(self, sock: socket.socket) -> bytes:
        """What came on the forged connection, after sending on it."""
        with suppress(OSError):
            sock.sendall(b"forged" * 100)
        with suppress(OSError):
            return sock.recv(1 << 16, socket.MSG_DONTWAIT)
        return b""


def _close_inherited() -> None:
    """The connections of the parent are to end when it closes them."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6):
                    os.close(int(entry.name))


def _forge(channel: Channel, numbers: Numbers, way: str) -> None:
    _close_inherited()
    made: list[tuple[Forger, socket.socket]] = []

    def forge() -> None:
        forger = Forger(numbers)
        forger.have_a_syn_answered()
        made.append((forger, getattr(forger, way)()))

    send_result(channel, forge)
    channel.recv()  # the end of the with block
    ((forger, sock),) = made
    send_result(channel, forger.loot, sock)


@contextmanager
def forging(numbers: Numbers, way: str) -> Iterator[None]:
    """The forged connection is there inside the with block; it must not have got anything then."""
    with Child(_forge, numbers, way) as child:
        receive_result(child.channel)
        yield
        child.channel.send("end")
        loot = receive_result(child.channel)
        assert loot == b"", loot
