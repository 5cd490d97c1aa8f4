"""shutdown(SHUT_WR), then a blocking recv() for an answer that takes its time, as nc and rsh do."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from sockredird.datapath.generation import Generation
from support.background import Background
from support.datapath import Datapath
from support.processes import inside
from support.traffic import connection, echo, pattern, read_to_end

TRIES = 20
TCP_FIN_WAIT2 = 5


def await_acknowledgement(sock: socket.socket) -> None:
    """Waits for the acknowledgement of its FIN, which only a waiting reader would notice."""
    deadline = time.monotonic() + 10
    while sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_FIN_WAIT2:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def failures() -> int:
    """Readers that got EAGAIN, woken by the acknowledgement, and not the answer."""
    count = 0
    for _ in range(TRIES):
        with connection() as both:
            echo(both, 1)
            both.client.shutdown(socket.SHUT_WR)
            reader = Background(both.client.recv, 100)
            await_acknowledgement(both.client)
            assert not both.server.recv(1)
            both.server.sendall(pattern(0, 100))
            try:
                assert reader.join(10) == pattern(0, 100)
            except BlockingIOError:
                count += 1
            both.server.close()
            both.client.setblocking(True)
            read_to_end(both.client)
    return count


@inside()
def test_answer_after_the_acknowledgement(datapath: Datapath, cgroup: Path) -> None:
    assert (failures() > 0) == datapath.is_textbook


@inside()
def test_while_the_datapath_is_taken_away(cgroup: Path, generation: Generation) -> None:
    """In the time that a pair may need to leave the sockhash."""
    with connection() as both:
        echo(both, 1)
        assert generation.counters()["redirected_messages"] == 2
        generation.stop()
        both.client.shutdown(socket.SHUT_WR)
        reader = Background(both.client.recv, 100)
        await_acknowledgement(both.client)
        assert not both.server.recv(1)
        both.server.sendall(pattern(0, 100))
        assert reader.join(10) == pattern(0, 100)
