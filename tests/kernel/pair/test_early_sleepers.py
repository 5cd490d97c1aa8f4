"""Threads that wait on a socket while its connection is still being made: its SYN was lost."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from support import namespaces, textbook
from support.background import Background
from support.processes import inside
from support.traffic import listen, pattern, read_exactly

LOST = ("OUTPUT", "-p", "tcp", "--syn", "-j", "DROP")


@contextmanager
def connecting(*, blocking: bool) -> Iterator[tuple[socket.socket, socket.socket, Background]]:
    """A listener, a socket connecting to it, and a thread that waits in connect() if `blocking`."""
    namespaces.enter_network()
    subprocess.run(["iptables", "-A", *LOST], check=True)
    with listen() as listener, socket.socket() as client:
        if blocking:
            yield listener, client, Background(client.connect, listener.getsockname())
        else:
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(listener.getsockname())
            client.setblocking(True)
            yield listener, client, Background(lambda: None)


def let_it_connect(listener: socket.socket) -> socket.socket:
    """The accepted end, a second or so later."""
    subprocess.run(["iptables", "-D", *LOST], check=True)
    return listener.accept()[0]


@inside()
def test_the_textbook_leaves_a_reader_asleep(cgroup: Path, bpffs: Path) -> None:
    with (
        textbook.attached(bpffs / "textbook-early", cgroup),
        connecting(blocking=False) as (listener, client, _),
    ):
        reader = Background(client.recv, 1)
        reader.wait_in_kernel()
        with let_it_connect(listener) as server:
            server.sendall(b"x")
            with pytest.raises(TimeoutError):
                reader.join(2)


@pytest.mark.parametrize("size", [1, 100_000])
@inside()
def test_reader(cgroup: Path, generation: Generation, size: int) -> None:
    data = pattern(0, 2 * size)
    with connecting(blocking=False) as (listener, client, _):
        reader = Background(read_exactly, client, size)
        reader.wait_in_kernel()
        with let_it_connect(listener) as server:
            server.sendall(data)
            assert reader.join(10) == data[:size]
            assert read_exactly(client, size) == data[size:]
            client.sendall(data)
            assert read_exactly(server, 2 * size) == data
    assert generation.counters()["accelerated_connections"] == 1


@inside()
def test_one_reader_of_two(cgroup: Path, generation: Generation) -> None:
    """The second came when the connection was there, and stands in front of the first."""
    with connecting(blocking=False) as (listener, client, _):
        early = Background(client.recv, 1)
        early.wait_in_kernel()
        with let_it_connect(listener) as server:
            late = Background(client.recv, 1)
            late.wait_in_kernel()
            server.sendall(b"xy")
            assert {early.join(10), late.join(10)} == {b"x", b"y"}
    assert generation.counters()["redirected_messages"] == 0
    assert generation.counters()["accelerated_connections"] == 1


@inside()
def test_sender(cgroup: Path, generation: Generation) -> None:
    data = pattern(0, 100_000)
    with connecting(blocking=False) as (listener, client, _):
        sender = Background(client.sendall, data)
        sender.wait_in_kernel()
        with let_it_connect(listener) as server:
            sender.join(10)
            client.sendall(data)
            assert read_exactly(server, 2 * len(data)) == data * 2
            server.sendall(data)
            assert read_exactly(client, len(data)) == data
    # the ACK waits for the sender's data, as a rule: tcp_rcv_synsent_state_process()
    counters = generation.counters()
    assert counters["declined_early_data"] + counters["accelerated_connections"] == 1


@pytest.mark.parametrize("first", ["client", "server"])
@inside()
def test_connect(cgroup: Path, generation: Generation, first: str) -> None:
    """Has returned when the first message is sent, and its connection is accelerated."""
    with connecting(blocking=True) as (listener, client, thread):
        thread.wait_in_kernel()
        with let_it_connect(listener) as server:
            thread.join(10)
            ends = (client, server) if first == "client" else (server, client)
            for sender, receiver in (ends, ends[::-1]):
                reader = Background(receiver.recv, 1)
                reader.wait_in_kernel()
                sender.sendall(b"x")
                assert reader.join(10) == b"x"
    assert generation.counters()["redirected_messages"] == 2
