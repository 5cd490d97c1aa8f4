"""Every shape of send arrives byte for byte, and redirected."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from random import Random

import pytest

from sockredird.datapath.generation import Generation
from support.background import Background
from support.processes import inside
from support.traffic import Stream, connection, pattern, read_exactly, read_to_end

MIB = 1 << 20
IOVECS = 1000  # close to IOV_MAX, 1024


def send_random(sock: socket.socket, size: int, seed: int) -> None:
    random = Random(seed)
    sent = 0
    while sent < size:
        length = min(random.choice((1, 17, 4095, 4097, 65_537, 300_000)), size - sent)
        sock.sendall(pattern(sent, length))
        sent += length


def receive_random(sock: socket.socket, size: int, seed: int) -> None:
    random = Random(seed)
    stream = Stream()
    while stream.position < size:
        try:
            data = sock.recv(random.choice((1, 13, 4096, 65_537, MIB)))
        except BlockingIOError:
            continue  # a sender beside us got room: test_blocking_recv.py
        assert data, f"the stream ended at byte {stream.position}"
        stream.feed(data)


@inside()
def test_large_messages(cgroup: Path, generation: Generation) -> None:
    size = 64 * MIB
    with connection() as both:
        stream = Stream()
        for position in range(0, size, MIB):
            both.client.sendall(pattern(position, MIB))
            stream.read(both.server, MIB)
    assert generation.counters()["redirected_bytes"] == size


@inside()
def test_many_iovecs(cgroup: Path, generation: Generation) -> None:
    random = Random(1)
    with connection() as both:
        position = 0
        stream = Stream()
        for _ in range(20):
            pieces = []
            for _ in range(IOVECS):
                length = random.randrange(1, 200)
                pieces.append(pattern(position, length))
                position += length
            assert both.client.sendmsg(pieces) == sum(map(len, pieces))
            stream.read(both.server, position - stream.position)
    assert generation.counters()["redirected_bytes"] == position


@inside()
def test_half_close_with_data_in_flight(cgroup: Path, generation: Generation) -> None:
    with connection() as both:
        both.client.sendall(pattern(0, MIB))
        both.client.shutdown(socket.SHUT_WR)
        assert read_to_end(both.server) == pattern(0, MIB)
        both.server.sendall(pattern(0, MIB))
        both.server.shutdown(socket.SHUT_WR)
        assert read_to_end(both.client) == pattern(0, MIB)
    # an end that has sent its last is a TCP socket, so the answer came through TCP
    assert generation.counters()["redirected_bytes"] == MIB


@inside()
def test_close_with_data_in_flight(cgroup: Path, generation: Generation) -> None:
    with connection() as both:
        both.client.sendall(pattern(0, MIB))
        both.client.close()
        assert read_to_end(both.server) == pattern(0, MIB)
    assert generation.counters()["redirected_bytes"] == MIB
    assert generation.members.walk().entries == 0


@inside()
def test_send_after_shutdown(cgroup: Path, generation: Generation) -> None:
    """TCP refuses it; a sockhash alone would deliver it behind the end of the stream."""
    with connection() as both:
        both.client.sendall(pattern(0, 1000))
        both.client.shutdown(socket.SHUT_WR)
        assert read_to_end(both.server) == pattern(0, 1000)
        with pytest.raises(BrokenPipeError):
            both.client.sendall(b"too late")
        both.server.sendall(pattern(0, 1000))
        assert read_exactly(both.client, 1000) == pattern(0, 1000)
    assert generation.counters()["redirected_messages"] == 1


@inside()
def test_sendfile_and_peek(cgroup: Path, generation: Generation, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(pattern(0, MIB))
    with connection() as both, source.open("rb") as file:
        stream = Stream()
        while sent := os.sendfile(both.client.fileno(), file.fileno(), None, 100_000):
            peeked = both.server.recv(5000, socket.MSG_PEEK)
            assert peeked == pattern(stream.position, len(peeked))
            stream.read(both.server, sent)
    assert stream.position == MIB
    assert generation.counters()["redirected_bytes"] == MIB


@inside()
def test_both_directions_at_once(cgroup: Path, generation: Generation) -> None:
    size = 32 * MIB
    with connection() as both:
        threads = [
            # first, as a reader that fails leaves its sender stuck
            Background(receive_random, both.client, size, 1),
            Background(receive_random, both.server, size, 2),
            Background(send_random, both.client, size, 3),
            Background(send_random, both.server, size, 4),
        ]
        for thread in threads:
            thread.join(50)
    assert generation.counters()["redirected_messages"] > 0
    assert generation.counters()["redirected_bytes"] <= 2 * size
