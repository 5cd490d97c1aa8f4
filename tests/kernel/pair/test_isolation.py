"""Bytes reach the connection they were sent on, whoever has its addresses, ports or numbers."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import pytest

from sockredird.datapath.generation import Generation
from sockredird.datapath.join import Joiner
from sockredird.kernel import libbpf
from sockredird.loader.records import ip_bytes
from support import textbook, topology
from support.datapath import Datapath
from support.forger import Numbers, forging
from support.processes import inside
from support.topology import Family, Network
from support.traffic import Connection, echo, set_linger, set_nodelay

NETWORKS, SOURCE_PORTS = 3, (30_001, 30_002)
STEPS = 400
WORD = struct.Struct(">HH")  # of which connection and direction, and how many before
RECEIVE_TIMEOUT_S = 10
END = struct.Struct("=III")  # struct end


class Crossed(AssertionError):
    """Something arrived that was not sent on this connection."""


class Tagged:
    """One end of a connection; all that it sends says so."""

    def __init__(self, sock: socket.socket, tag: int, peer_tag: int) -> None:
        self.sock = sock
        self.sent = self.received = 0
        self._tag, self._peer_tag = tag, peer_tag
        self._rest = b""
        # in the kernel, so that recv() stays the blocking system call
        limit = struct.pack("ll", RECEIVE_TIMEOUT_S, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def send(self, words: int) -> None:
        data = b"".join(
            WORD.pack(self._tag, number % 65536) for number in range(self.sent, self.sent + words)
        )
        self.sent += words
        self.sock.sendall(data)

    def receive(self, words: int) -> None:
        """That many, all of them the peer's next."""
        while words:
            try:
                data = self.sock.recv(words * WORD.size - len(self._rest))
            except BlockingIOError:
                raise Crossed(f"{self._peer_tag}: nothing came") from None
            if not data:
                raise Crossed(f"{self._peer_tag}: the stream has ended")
            data = self._rest + data
            whole = len(data) // WORD.size * WORD.size
            self._rest = data[whole:]
            for found in WORD.iter_unpack(data[:whole]):
                wanted = (self._peer_tag, self.received % 65536)
                if found != wanted:
                    raise Crossed(f"(sender, number) is {found}, and not {wanted}")
                self.received += 1
                words -= 1


class Schedule:
    """Steps drawn at random: connections with the same addresses and ports open, talk and go."""

    ENDS = 0.15  # of the steps on an open connection

    def __init__(self, networks: list[Network], random: Random) -> None:
        self._networks = networks
        self._random = random
        self._listeners = [network.listen() for network in networks]
        self._open: dict[tuple[int, int], tuple[Tagged, Tagged]] = {}
        self._lingering: list[socket.socket] = []
        self._tags = 0
        self.opened = 0

    def step(self) -> None:
        place = (
            self._random.randrange(len(self._networks)),
            self._random.choice(SOURCE_PORTS),
        )
        if place not in self._open:
            self._connect(place)
        elif self._random.random() < self.ENDS:
            self._abandon(place)
        else:
            self._talk(*self._open[place])

    def _connect(self, place: tuple[int, int]) -> None:
        number, port = place
        client = self._networks[number].dial(port)
        server, _ = self._listeners[number].accept()
        for end in (client, server):
            set_nodelay(end)
        self._tags = (self._tags + 2) % 65536
        first, second = self._tags, self._tags + 1
        self._open[place] = (Tagged(client, first, second), Tagged(server, second, first))
        self.opened += 1

    def _abandon(self, place: tuple[int, int]) -> None:
        """The client's port is free at once; the server end lingers, often with unread data."""
        client, server = self._open.pop(place)
        if self._random.random() < 0.5:
            with suppress(OSError):
                client.send(self._random.randrange(1, 2000))
        set_linger(client.sock, 0)
        client.sock.close()
        self._lingering.append(server.sock)
        if len(self._lingering) > 8:
            self._lingering.pop(self._random.randrange(8)).close()

    def _talk(self, client: Tagged, server: Tagged) -> None:
        sender, receiver = self._random.choice([(client, server), (server, client)])
        if self._random.random() < 0.7:
            sender.send(self._random.choice([1, 3, 16, 1000, 5000]))
        waiting = sender.sent - receiver.received
        if waiting and self._random.random() < 0.8:
            receiver.receive(self._random.randrange(1, waiting + 1))
        elif waiting > 20_000:
            receiver.receive(waiting)

    def finish(self) -> None:
        """Whatever was sent arrives."""
        for client, server in self._open.values():
            for sender, receiver in ((client, server), (server, client)):
                receiver.receive(sender.sent - receiver.received)


class LiveSchedule(Schedule):
    """None is paired at its handshake, which data comes with; they are joined now and then."""

    ENDS = 0.03

    def __init__(self, networks: list[Network], random: Random, generation: Generation) -> None:
        super().__init__(networks, random)
        self._generation = generation
        self._joiner = Joiner()
        self._forger = ExitStack()
        self.forged = 0
        for listener in self._listeners:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)

    def step(self) -> None:
        chance = self._random.random()
        if chance < 0.1:
            self._joiner._tried.clear()  # what has left may come again at once
            self._joiner.look(self._generation, "any")
        elif chance < 0.15:
            self._generation.members.retire(0.02, lambda walked: walked.leaving == 0)
        elif chance < 0.19:
            self._forge()
        else:
            super().step()

    def _connect(self, place: tuple[int, int]) -> None:
        number, port = place
        self._tags = (self._tags + 2) % 65536
        first, second = self._tags, self._tags + 1
        client = Tagged(self._networks[number].dial(port), first, second)
        client.send(3)
        server = Tagged(self._listeners[number].accept()[0], second, first)
        for end in (client, server):
            set_nodelay(end.sock)
        server.receive(3)
        self._open[place] = client, server
        self.opened += 1

    def _talk(self, client: Tagged, server: Tagged) -> None:
        super()._talk(client, server)
        if self._random.random() < 0.5:
            for sender, receiver in (client, server), (server, client):
                sender.send(5)
                receiver.receive(sender.sent - receiver.received)

    def _forge(self) -> None:
        """Somebody has a socket with the addresses and numbers of one of the connections."""
        ends = [c for c in self._generation.candidates() if c.local_port in SOURCE_PORTS]
        if not ends:
            return
        end = self._random.choice(ends)
        names = [
            (socket.inet_ntoa(ip_bytes(ip)[12:]), port)
            for ip, port in ((end.local_ip, end.local_port), (end.remote_ip, end.remote_port))
        ]
        self._forger.close()
        numbers = Numbers(*names, end.isn_1 - 1, end.peer_isn_1 - 1)
        self._forger.enter_context(forging(numbers, "repaired"))
        self.forged += 1

    def finish(self) -> None:
        super().finish()
        self._forger.close()


def namesakes(name: str) -> list[Network]:
    """Networks alike in every address and port."""
    return [topology.ALL[name](Family(4)) for _ in range(NETWORKS)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["loopback", "one address", "veth", "redirect"])
@pytest.mark.parametrize("generation", [{"addresses": "any"}], indirect=True, ids=["any"])
@inside(timeout=120)
def test_bytes_never_cross(cgroup: Path, generation: Generation, name: str, seed: int) -> None:
    schedule = Schedule(namesakes(name), Random(seed))
    for _ in range(STEPS):
        schedule.step()
    schedule.finish()
    counters = generation.counters()
    # those that lose nothing but their acceleration do so one at a time
    assert counters["accelerated_connections"] > schedule.opened * 0.9
    assert counters["redirected_messages"] > STEPS / 4


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["loopback", "veth", "redirect"])
@pytest.mark.parametrize("generation", [{"addresses": "any"}], indirect=True, ids=["any"])
@inside(timeout=120)
def test_bytes_of_joined_connections_never_cross(
    cgroup: Path, generation: Generation, name: str, seed: int
) -> None:
    schedule = LiveSchedule(namesakes(name), Random(seed), generation)
    for _ in range(STEPS):
        schedule.step()
    schedule.finish()
    counters = generation.counters()
    assert counters["joined_connections"] == counters["accelerated_connections"] > 5
    assert counters["redirected_messages"] > STEPS / 4
    assert schedule.forged > 2


@pytest.mark.parametrize("name", ["loopback", "veth"])
@inside(timeout=120)
def test_they_cross_in_the_textbook(cgroup: Path, datapath: Datapath, name: str) -> None:
    schedule = Schedule(namesakes(name), Random(0))
    crossed = False
    try:
        for _ in range(STEPS):
            schedule.step()
        schedule.finish()
    except (Crossed, OSError) as error:
        crossed = isinstance(error, Crossed) or error.errno == errno.EAGAIN
    assert crossed == datapath.is_textbook


# -- somebody who knows the numbers of another's handshake, and has a namespace of his own -------


def numbers_of(generation: Generation, both: Connection) -> Numbers:
    """As whoever sees the handshake knows them, or root."""
    with libbpf.open_pin(generation.directory / "peers") as peers:
        client_seq, server_seq, _side = END.unpack(libbpf.keys(peers, END.size)[0])
    return Numbers(
        both.client.getsockname(), both.client.getpeername(), client_seq - 1, server_seq - 1
    )


@pytest.mark.parametrize("moment", ["before the first message", "in use", "one end waits"])
@pytest.mark.parametrize("name", ["veth", "two addresses"])
@pytest.mark.parametrize("way", ["repaired", "chosen"])
@pytest.mark.parametrize("generation", [{"addresses": "any"}], indirect=True, ids=["any"])
@inside()
def test_a_forged_handshake(
    cgroup: Path, generation: Generation, way: str, name: str, moment: str
) -> None:
    network = topology.ALL[name](Family(4))
    with network.listen() as listener:
        if moment == "one end waits":
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
            victim = Connection(network.dial(), listener)
        else:
            victim = Connection(network.dial(), listener.accept()[0])
        if moment == "in use":
            echo(victim, 10)
        before = generation.counters()
        with forging(numbers_of(generation, victim), way):
            change = {n: v - before[n] for n, v in generation.counters().items() if v != before[n]}
            # the same numbers were met, and turned down; nobody's place was taken
            expected = "declined_mismatch" if way == "chosen" else "declined_repair"
            assert change == {expected: 1}
            if moment == "one end waits":
                victim.client.sendall(b"x" * 64)
                victim = Connection(victim.client, listener.accept()[0])
                assert victim.server.recv(64) == b"x" * 64
            echo(victim, 100)
            if moment != "one end waits":  # which data in the handshake keeps on TCP
                done = generation.counters()["redirected_messages"]
                assert done - before["redirected_messages"] == 200
    another = network.connect()
    before = generation.counters()
    echo(another, 10)
    assert generation.counters()["redirected_messages"] - before["redirected_messages"] == 20


@inside()
def test_forging_pays_in_the_textbook(cgroup: Path, bpffs: Path) -> None:
    network = topology.veth(Family(4))
    with textbook.attached(bpffs / "textbook-forged", cgroup):
        victim = network.connect()
        numbers = Numbers(victim.client.getsockname(), victim.client.getpeername(), 1000, 2000)
        with pytest.raises(AssertionError, match="secret"), forging(numbers, "repaired"):
            victim.server.sendall(b"secret")
