"""What stops a connection's packets stops it within the interval, and conntrack does not forget it.

Both show on the textbook: a firewall that has forgotten the connection drops its end, and a rule
that drops all of its packets changes nothing.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sockredird.datapath.generation import Generation
from sockredird.kernel import libbpf
from sockredird.loader.header import record
from support import namespaces, processes
from support.alternation import NO_LOOK_AT_THE_LOCK
from support.background import Background
from support.daemon import pins
from support.datapath import Datapath
from support.edited import Edit, generation_of
from support.emulated import PATIENCE
from support.forced import left
from support.processes import inside
from support.topology import Family, Network, run, two_backends, veth
from support.traffic import Connection, Stream, connection, echo, pattern, set_nodelay
from support.waiting import eventually

KIB = 1 << 10
INTERVAL_S = 1.0
CONNTRACK_S = 2
BUSY_S = 2 * CONNTRACK_S
SLACK_S = 2.0 * PATIENCE  # for a machine that runs other things first
BURST = 8
STOPPED_S = 1.0 * PATIENCE
NEVER_REVALIDATED: Edit = (
    "carry/redirect.c",
    "st->tcp_due = now + period;",
    "st->tcp_due = now + (1ULL << 40);",
)
EACH_BY_ITSELF: Edit = ("carry/redirect.c", "now -= now % period;", "now -= 0;")
END_S = 5.0 * PATIENCE
TCP_INFO_DATA_SEGS_OUT = 156  # offset in struct tcp_info, include/uapi/linux/tcp.h
pytestmark = pytest.mark.plan(addresses="any", revalidate_s=INTERVAL_S)
FAMILIES = [pytest.param(Family(version), id=f"IPv{version}") for version in (4, 6)]


class Busy:
    """Round trips on a connection, one after the other, by programs that poll."""

    def __init__(self, both: Connection) -> None:
        self.rounds = 0
        self.last = time.monotonic()
        self._both = both
        self._ending = threading.Event()
        self._thread = Background(self._run)

    def _run(self) -> None:
        while not self._ending.is_set():
            for sender, reader in (
                (self._both.client, self._both.server),
                (self._both.server, self._both.client),
            ):
                sender.sendall(b"x" * 64)
                if not self._wait(reader):
                    return
                assert reader.recv(100) == b"x" * 64
            self.rounds += 1
            self.last = time.monotonic()

    def _wait(self, reader: socket.socket) -> bool:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        while not poll.poll(50):
            if self._ending.is_set():
                return False
        return True

    @property
    def broken(self) -> bool:
        return self._thread.error is not None

    def stands_still(self) -> bool:
        return time.monotonic() - self.last > STOPPED_S

    def advance(self, rounds: int) -> None:
        """Returns after that many more rounds."""
        goal = self.rounds + rounds
        eventually(lambda: self.broken or self.rounds >= goal, f"{rounds} more round trips")
        assert not self.broken

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(10 * PATIENCE)


def stateful_firewall(network: Network, family: Family) -> None:
    """The usual one, before the listener."""
    with network.server.entered():
        for rule in (
            "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-p tcp --syn -j ACCEPT",
            *(["-p icmpv6 -j ACCEPT"] if family.version == 6 else []),
            "-j DROP",
        ):
            run(family.iptables, "-A", "INPUT", *rule.split())
        timeout = "net.netfilter.nf_conntrack_tcp_timeout_established"
        namespaces.sysctl(timeout, str(CONNTRACK_S))


@inside()
def test_the_end_gets_through_conntrack(cgroup: Path, datapath: Datapath) -> None:
    """Of a connection that was busy for longer than conntrack remembers one without packets."""
    family = Family(4)
    network = veth(family)
    stateful_firewall(network, family)
    both = network.connect()
    busy = Busy(both)
    time.sleep(BUSY_S)
    busy.stop()
    both.client.close()
    both.server.settimeout(END_S)
    if datapath.generation is None:
        with pytest.raises(TimeoutError):
            both.server.recv(1)
        return
    assert both.server.recv(1) == b""
    counters = datapath.generation.counters()
    # five times within the timeout, in each direction; fewer on a busy machine
    assert counters["paused_revalidation"] >= 2 * BUSY_S / CONNTRACK_S * 2
    assert counters["redirected_messages"] >= 0.98 * 2 * busy.rounds


@inside()
def test_ipv6_through_conntrack(cgroup: Path, generation: Generation) -> None:
    family = Family(6)
    network = veth(family)
    stateful_firewall(network, family)
    both = network.connect()
    busy = Busy(both)
    time.sleep(BUSY_S)
    busy.stop()
    both.server.shutdown(socket.SHUT_WR)
    both.client.close()
    both.server.settimeout(END_S)
    assert both.server.recv(1) == b""
    assert generation.counters()["redirected_messages"] >= 0.98 * 2 * busy.rounds


@inside()
def test_leaving_gets_through_conntrack(cgroup: Path, generation: Generation) -> None:
    """Disable takes the connection back to a TCP that works."""
    family = Family(4)
    network = veth(family)
    stateful_firewall(network, family)
    both = network.connect()
    busy = Busy(both)
    time.sleep(BUSY_S)
    assert generation.counters()["redirected_messages"] > 1000
    generation.stop()
    assert generation.members.retire(10 * PATIENCE, lambda walked: walked.entries == 0)
    busy.advance(100)
    busy.stop()


def between(backends: list[Network], number: int) -> list[Connection]:
    """Connections to the address of both backends; each of them accepts half."""
    made = []
    with ExitStack() as stack:
        listeners = [stack.enter_context(backend.listen()) for backend in backends]
        for at in range(number):
            client = backends[0].dial()
            ready = select.select(listeners, [], [], END_S)[0]
            assert ready == [listeners[at % 2]]
            made.append(Connection(client, ready[0].accept()[0]))
            for end in (made[-1].client, made[-1].server):
                set_nodelay(end)
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("without", [False, True], ids=["with", "without"])
@inside()
def test_two_backends(
    cgroup: Path, bpffs: Path, tmp_path: Path, family: Family, without: bool
) -> None:
    """Disable takes each connection back to a TCP that reaches the backend it was made to."""
    host, backends = two_backends(family)
    with host.entered():
        timeout = "net.netfilter.nf_conntrack_tcp_timeout_established"
        namespaces.sysctl(timeout, str(CONNTRACK_S))
    # a busy peer's message goes by TCP, too, and conntrack would remember the connection for that
    edits = [NEVER_REVALIDATED, NO_LOOK_AT_THE_LOCK] if without else []
    settings = {"addresses": "any", "revalidate_s": CONNTRACK_S / 4}  # conntrack is at neither end
    with generation_of(edits, bpffs, cgroup, tmp_path, **settings) as generation:
        busy = [Busy(both) for both in between(backends, 4)]
        time.sleep(BUSY_S)
        counters = generation.counters()
        assert counters["accelerated_connections"] == len(busy)
        assert counters["redirected_messages"] > 1000
        with host.entered():  # the first backend gets no new connections
            run(family.iptables, "-t", "nat", "-D", "PREROUTING", "1")
        generation.stop()
        assert generation.members.retire(10 * PATIENCE, lambda walked: walked.entries == 0)
        if without:
            eventually(lambda: any(one.broken or one.stands_still() for one in busy), "one is lost")
        else:
            for one in busy:
                one.advance(100)
                one.stop()


def idle_while_conntrack_forgets(take_back: Callable[[], None]) -> list[Any]:
    """What the ends see of data that was unread, and of each other afterwards."""
    network = veth(Family(4))
    stateful_firewall(network, Family(4))
    both = network.connect()
    echo(both, 10)
    both.client.sendall(b"unread")
    both.server.sendall(b"unread, too")
    time.sleep(2 * CONNTRACK_S)
    seen: list[Any] = [both.server.recv(100), both.client.recv(100)]
    take_back()
    both.client.sendall(b"more")
    both.server.settimeout(STOPPED_S)
    try:
        seen.append(both.server.recv(100))
    except TimeoutError:
        seen.append("nothing")
    return seen


def test_disable_while_conntrack_has_forgotten(cgroup: Path, generation: Generation) -> None:
    """An idle connection is forgotten, as on TCP; what was unread is there, and no more is lost."""

    def disable() -> None:
        generation.stop()
        assert generation.members.retire(10 * PATIENCE, lambda walked: walked.entries == 0)

    plain = processes.run(idle_while_conntrack_forgets, lambda: None)
    assert processes.run(idle_while_conntrack_forgets, disable, cgroup=cgroup) == plain
    assert plain[:2] == [b"unread", b"unread, too"]
    assert generation.counters()["redirected_messages"] == 22


def rule(network: Network, family: Family, chain: str, action: str) -> None:
    end = network.server if chain == "INPUT" else network.client
    with end.entered():
        run(family.iptables, action, chain, "-p", "tcp", "-j", "DROP")


@pytest.mark.parametrize("chain", ["INPUT", "OUTPUT"])
@inside()
def test_a_rule_stops_it(cgroup: Path, datapath: Datapath, chain: str) -> None:
    check_rule(datapath.generation, Family(4), chain)


@inside()
def test_a_rule_stops_it_with_ipv6(cgroup: Path, generation: Generation) -> None:
    check_rule(generation, Family(6), "INPUT")


def check_rule(generation: Generation | None, family: Family, chain: str) -> None:
    """A rule for all packets, added under traffic and removed again."""
    network = veth(family)
    busy = Busy(network.connect())
    busy.advance(100)
    rule(network, family, chain, "-I")
    added = time.monotonic()
    if generation is None:
        time.sleep(INTERVAL_S + SLACK_S)
        assert not busy.stands_still()
        busy.stop()
        return
    eventually(busy.stands_still, "it stops")
    assert busy.last - added <= INTERVAL_S + SLACK_S
    assert generation.counters()["redirected_messages"] > 100
    rule(network, family, chain, "-D")
    busy.advance(1000)
    before = generation.counters()["redirected_messages"]
    busy.advance(1000)
    assert generation.counters()["redirected_messages"] > before + 1000
    busy.stop()


@pytest.mark.parametrize("without", [False, True], ids=["with", "without"])
@inside()
def test_directions_are_revalidated_together(
    cgroup: Path, bpffs: Path, tmp_path: Path, without: bool
) -> None:
    """Whenever they began, so that one walk serves them."""
    edits = [EACH_BY_ITSELF] if without else []
    with (
        generation_of(edits, bpffs, cgroup, tmp_path, revalidate_s=INTERVAL_S) as generation,
        libbpf.open_pin(generation.directory / "sockets") as sockets,
        ExitStack() as stack,
    ):
        state = record("sock_state")

        def due() -> list[int]:
            """In jiffies, of each direction."""
            return [
                state.unpack(
                    libbpf.lookup(sockets, sock.fileno().to_bytes(4, sys.byteorder), state.size)
                ).tcp_due
                for both in made
                for sock in (both.client, both.server)
            ]

        made: list[Connection] = []
        for _ in range(4):
            made.append(stack.enter_context(connection()))
            echo(made[-1], 10)
        first = due()
        assert all(first)

        def revalidated() -> bool:
            for both in made:
                echo(both, 1)
            return all(now != then for now, then in zip(due(), first, strict=True))

        eventually(revalidated, "each direction was revalidated")
        interval = pins.settings(generation.directory.parent).revalidate
        period = interval - interval // 4
        assert all(time % period == 0 for time in due()) == (not without)


@inside()
def test_few_messages_go_by_tcp(cgroup: Path, generation: Generation) -> None:
    with connection() as both:
        echo(both, 10)
        busy = Busy(both)
        time.sleep(3 * INTERVAL_S)
        busy.stop()
    counters = generation.counters()
    sent = 20 + 2 * busy.rounds
    assert counters["redirected_messages"] >= max(sent - 10, 0.98 * sent)
    assert counters["paused_revalidation"] >= 4


@pytest.mark.parametrize("chunk", [1000, 16 * KIB, 64 * KIB])
@inside()
def test_a_stream_is_revalidated_as_well(cgroup: Path, generation: Generation, chunk: int) -> None:
    """Of the messages of a burst only the first finds nothing unread."""
    with connection() as both:
        stream, end = Stream(), time.monotonic() + 3 * INTERVAL_S
        while time.monotonic() < end:
            for position in range(stream.position, stream.position + BURST * chunk, chunk):
                both.client.sendall(pattern(position, chunk))
            stream.read(both.server, BURST * chunk)
        counters = generation.counters()
        generation.members.retire(10, lambda walked: not walked.leaving)
    messages = stream.position // chunk
    assert counters["redirected_messages"] >= min(messages - 10, 0.98 * messages)
    assert counters["paused_revalidation"] >= 2
    assert left(generation.counters()) == 0


def data_segments(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(info[TCP_INFO_DATA_SEGS_OUT:][:4], "little")


@inside()
def test_who_sends_nothing_is_left_alone(cgroup: Path, generation: Generation) -> None:
    """A direction without messages stays silent, whether the other one is busy or not."""
    with connection() as busy, connection() as idle:
        echo(idle, 10)
        before = [data_segments(end) for end in (idle.client, idle.server, busy.server)]
        end = time.monotonic() + 3 * INTERVAL_S
        stream = Stream()
        while time.monotonic() < end:
            busy.client.sendall(pattern(stream.position, 100))
            stream.read(busy.server, 100)
        assert data_segments(busy.client) >= 2
        after = [data_segments(end) for end in (idle.client, idle.server, busy.server)]
        assert after == before
        echo(idle, 10)
        generation.members.walk()
        assert generation.counters()["redirected_messages"] >= 36
