"""A sender that fills the window and is gone before the daemon looks: its reader leaves, too.

Until then FIONREAD of the reader counts redirected data or TCP's, and not both.
"""

from __future__ import annotations

import os
import signal
import socket

import pytest

from support.daemon import pins
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.traffic import Connection, Stream, connect, echo, listen, pattern, readable_bytes
from support.waiting import eventually

WINDOW = 65_536
UNREAD = 4 * WINDOW  # as much again fits into TCP's own buffers
CHUNK = 4096

_held: list[Connection] = []


def fill(sender: str) -> None:
    """With the client as the sender, one that has never sent anything may be the reader."""
    with listen() as listener:
        both = connect(listener)
    if sender == "server":
        both = Connection(both.server, both.client)
    for position in range(0, UNREAD, CHUNK):
        both.client.sendall(pattern(position, CHUNK))
    _held.append(both)


def leave(how: str) -> None:
    if how == "close":
        _held[-1].client.close()
    else:
        _held[-1].client.shutdown(socket.SHUT_WR)


def read_what_is_counted() -> None:
    """As programs do that read no more than FIONREAD says."""
    stream, reader = Stream(), _held[-1].server
    while stream.position < UNREAD:
        eventually(lambda: readable_bytes(reader) > 0, "FIONREAD counts what is unread")
        stream.read(reader, readable_bytes(reader))
    assert not reader.recv(1)


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize("how", ["close", "shutdown"])
@pytest.mark.parametrize(
    "host", [{"limits": {"window_bytes": WINDOW}}], indirect=True, ids=["64KiB"]
)
def test_reader(host: Host, daemon: DaemonProcess, enabled: Client, how: str, sender: str) -> None:
    program = host.actor()
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        program.do(fill, sender)
        program.do(leave, how)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert WINDOW <= pins.counters(host.root)["redirected_bytes"] < UNREAD
    program.do(read_what_is_counted)
    # the first walk that finds its queue empty takes it off
    eventually(lambda: enabled.call("Stats")["map_entries"] == 0, "the reader is off the map")


def half_close_with_unread_data() -> None:
    with listen() as listener:
        both = connect(listener)
    echo(both, 1)
    both.server.sendall(pattern(0, CHUNK))
    both.client.shutdown(socket.SHUT_WR)
    both.server.sendall(pattern(CHUNK, UNREAD - CHUNK))
    both.server.shutdown(socket.SHUT_WR)
    _held.append(Connection(both.server, both.client))


def test_half_closed_reader(host: Host, enabled: Client) -> None:
    """What it has not read keeps it on the map; what comes then is TCP's, and little of it."""
    program = host.actor()
    program.do(half_close_with_unread_data)
    assert pins.counters(host.root)["redirected_messages"] == 3
    program.do(read_what_is_counted)
    eventually(lambda: pins.counters(host.root)["retired_half_closed"] == 1, "the pair is retired")
