"""Data that may reach TCP before the pair is complete: no byte overtakes another (I1).

Each traffic runs over the textbook datapath first and has to be corrupted there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support import namespaces
from support.background import Background, retiring
from support.datapath import Datapath
from support.emulated import times
from support.kernel_facts import FIONREAD_OMITS_TCP
from support.processes import inside
from support.traffic import (
    Connection,
    check_native,
    dial,
    echo,
    listen,
    pattern,
    read_exactly,
    read_to_end,
)

TRIES = 20
CHUNK = 1000
CHUNKS = 8
OVERFLOWS = 3
RPS_CONNECTIONS = times(10_000)
RPS_CHUNKS = 3
ROUNDS, BY_TCP = 20, 4  # messages until a direction has begun
# bpf/pair/pair.c: has_early_data()
DECLINES = FIONREAD_OMITS_TCP

# net.ipv4.tcp_fastopen, Documentation/networking/ip-sysctl.rst
FASTOPEN = {
    "with a cookie": 0x3,
    "without a cookie": 0x1 | 0x2 | 0x4 | 0x200,
    "refused by the server": 0x1,
}


def judge(datapath: Datapath, corrupted: int, tries: int) -> None:
    if datapath.is_textbook:
        assert corrupted > 0, "this traffic cannot tell a wrong datapath from a right one"
    else:
        assert corrupted == 0, f"{corrupted} of {tries} connections corrupted"


def send_chunks(sock: socket.socket, first: int, last: int) -> None:
    for i in range(first, last):
        sock.sendall(pattern(i * CHUNK, CHUNK))


def check_what_became(datapath: Datapath, client: socket.socket, server: socket.socket) -> None:
    """Early data leaves both ends plain TCP sockets (I5), or a pair that begins after it (I1)."""
    generation = datapath.generation
    if generation is None:
        return
    entries = generation.members.walk().entries
    if DECLINES or not entries:
        assert entries == 0
        check_native(client, server)
        check_native(server, client)
        return
    before = generation.counters()["redirected_messages"]
    echo(Connection(client, server), ROUNDS)
    assert generation.counters()["redirected_messages"] - before >= 2 * ROUNDS - BY_TCP


def count_corrupted(
    datapath: Datapath, listener: socket.socket, open_and_send: Callable[[], socket.socket]
) -> int:
    """Connections of TRIES whose data, sent in chunks from the moment of connect, is not intact."""
    corrupted = 0
    for _ in range(TRIES):
        with closing(open_and_send()) as client:
            server, _address = listener.accept()
            with closing(server):
                received = read_exactly(server, CHUNKS * CHUNK)
                corrupted += received != pattern(0, CHUNKS * CHUNK)
                check_what_became(datapath, client, server)
    return corrupted


def check_early_data(datapath: Datapath, tries: int, in_the_syn: int = 0) -> None:
    """A server end that is established with its SYN's data is declined on every kernel."""
    if datapath.generation is None:
        return
    counters = datapath.generation.counters()
    paired = 0 if DECLINES else tries - in_the_syn
    assert counters["declined_early_data"] == tries - paired
    assert counters["accelerated_connections"] == paired
    assert (counters["redirected_messages"] > 0) == (paired > 0)


@inside()
def test_deferred_accept(cgroup: Path, datapath: Datapath) -> None:
    with listen() as listener:
        # the ACK of the handshake is dropped until data comes along with one
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)

        def open_and_send() -> socket.socket:
            client = dial(listener)
            send_chunks(client, 0, CHUNKS)
            return client

        judge(datapath, count_corrupted(datapath, listener, open_and_send), TRIES)
    check_early_data(datapath, TRIES)


@pytest.mark.parametrize("mode", FASTOPEN.values(), ids=FASTOPEN)
@inside()
def test_fast_open(cgroup: Path, datapath: Datapath, mode: int) -> None:
    namespaces.enter_network()
    namespaces.allow_fast_open(mode)
    with listen() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 64)

        def open_and_send() -> socket.socket:
            client = socket.socket()
            client.sendto(pattern(0, CHUNK), socket.MSG_FASTOPEN, listener.getsockname())
            send_chunks(client, 1, CHUNKS)
            return client

        judge(datapath, count_corrupted(datapath, listener, open_and_send), TRIES)
    # the first try has to ask for its cookie
    in_the_syn = {0x3: TRIES - 1, 0x1: 0}.get(mode, TRIES)
    assert namespaces.netstat("TCPFastOpenPassive") == in_the_syn
    check_early_data(datapath, TRIES, in_the_syn)


@pytest.mark.plan(learn=False)  # or the listener is left alone, and the race met less often
@pytest.mark.parametrize("walking", [False, True], ids=["", "while walking"])
@inside(timeout=120)
def test_rps(cgroup: Path, datapath: Datapath, walking: bool) -> None:
    """A first message may overtake the ACK that completes the handshake on the other CPU."""
    generation = datapath.generation
    namespaces.enter_network_with_rps()
    with listen() as listener:

        def send() -> None:
            for _ in range(RPS_CONNECTIONS):
                with closing(dial(listener)) as client:
                    send_chunks(client, 0, RPS_CHUNKS)

        corrupted = 0
        with retiring(generation) if generation and walking else nullcontext():
            sender = Background(send)
            for _ in range(RPS_CONNECTIONS):
                server, _address = listener.accept()
                with closing(server):
                    corrupted += read_to_end(server) != pattern(0, RPS_CHUNKS * CHUNK)
            sender.join()
    judge(datapath, corrupted, RPS_CONNECTIONS)
    if generation is None:
        return
    counters = generation.counters()
    assert counters["accelerated_connections"] + counters["declined_early_data"] == RPS_CONNECTIONS
    # both sides of the race were met
    assert RPS_CONNECTIONS < counters["redirected_messages"] < RPS_CONNECTIONS * RPS_CHUNKS
    assert (counters["declined_early_data"] > 0) == DECLINES
    assert generation.members.walk().entries == 0


@inside()
def test_data_before_accept(cgroup: Path, generation: Generation) -> None:
    """Not run over the textbook, which is right here: accept() has no part in the handshake."""
    with listen() as listener:
        for _ in range(TRIES):
            with closing(dial(listener)) as client:
                send_chunks(client, 0, CHUNKS)
                server, _address = listener.accept()
                with closing(server):
                    assert read_exactly(server, CHUNKS * CHUNK) == pattern(0, CHUNKS * CHUNK)
    counters = generation.counters()
    assert counters["accelerated_connections"] == TRIES
    assert counters["redirected_messages"] == TRIES * CHUNKS


@inside()
def test_full_accept_queue(cgroup: Path, datapath: Datapath) -> None:
    """The handshake is completed by a retransmission of what the full queue had dropped."""
    namespaces.enter_network()
    corrupted = 0
    for _ in range(OVERFLOWS):
        with listen() as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
            listener.listen(0)  # room for one; SYN cookies from the second on
            with closing(dial(listener)) as client, closing(dial(listener)) as first:
                first.sendall(b"x")  # takes the room
                send_chunks(client, 0, 1)
                listener.accept()[0].close()
                server, _address = listener.accept()
                with closing(server):
                    send_chunks(client, 1, CHUNKS)
                    received = read_exactly(server, CHUNKS * CHUNK)
                    corrupted += received != pattern(0, CHUNKS * CHUNK)
                    check_what_became(datapath, client, server)
    assert namespaces.netstat("ListenOverflows") >= OVERFLOWS
    judge(datapath, corrupted, OVERFLOWS)
    # `first` came through a SYN cookie: no listener is known to have answered it
    check_early_data(datapath, OVERFLOWS)
