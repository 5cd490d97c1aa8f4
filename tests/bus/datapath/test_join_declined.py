"""Connections that could not be paired at the handshake, or had to leave, join when they are quiet.

Their programs poll and check every byte; the daemon has WITHIN_S from when a connection is quiet.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from support import namespaces, topology
from support.daemon import polling
from support.daemon.client import Client
from support.daemon.host import Host
from support.emulated import PATIENCE
from support.topology import Family
from support.traffic import Connection, Stream, connect, listen, pattern, set_nodelay

WITHIN_S = 15.0 * PATIENCE
FIRST = 3000  # bytes that a client sends before it is accepted
UNREAD = 64 << 20  # more than any window
_kept: list[Any] = []  # of the Actor: what its connections need
pytestmark = pytest.mark.parametrize(
    "host",
    [
        {
            "scope": {"blocking_readers": "tcp", "addresses": "any"},
            "learning": {"unprofitable": False},
        }
    ],
    indirect=True,
    ids=["tcp"],
)


def deferred() -> None:
    """The server's end is established by a segment that carries data."""
    with listen() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        client = socket.create_connection(listener.getsockname())
        client.sendall(pattern(0, FIRST))
        server, _ = listener.accept()
    _carry(Connection(client, server), FIRST)


def behind_snat() -> None:
    namespaces.enter_network()
    _translated(topology.masquerade(Family(4)))


def published_on_loopback() -> None:
    namespaces.enter_network()
    _translated(topology.published_on_loopback())


def _translated(network: topology.Network) -> None:
    _kept.append(network)
    both = network.connect()
    with network.server.entered():
        assert both.server.getpeername() != both.client.getsockname(), "nothing is translated"
    _carry(both, 0)


def under_syn_cookies() -> None:
    """The listener keeps nothing of the SYN: its answer says it all."""
    namespaces.enter_network()
    namespaces.sysctl("net.ipv4.tcp_syncookies", "2")
    with listen() as listener:
        both = connect(listener)
    assert namespaces.netstat("SyncookiesRecv") == 1
    _carry(both, 0)


def over_the_window() -> None:
    """The pair is accelerated, and goes to TCP as its server does not read for a while."""
    with listen() as listener:
        both = connect(listener)
    for end in (both.client, both.server):
        end.setblocking(False)
    sent = 0
    while sent < UNREAD:
        try:
            sent += both.client.send(pattern(sent, min(1 << 16, UNREAD - sent)))
        except BlockingIOError:
            break
    stream = Stream()
    deadline = time.monotonic() + WITHIN_S
    while stream.position < sent:
        assert time.monotonic() < deadline, "stuck"
        try:
            stream.feed(both.server.recv(1 << 16))
        except BlockingIOError:
            time.sleep(0.001)
    _carry(both, sent)


def _carry(both: Connection, sent: int) -> None:
    for end in (both.client, both.server):
        set_nodelay(end)
    if 0 < sent <= FIRST:
        Stream().read(both.server, sent)
    polling.carry([both], sent, streams=False)


CASES = {
    "deferred listener": (deferred, "declined_early_data"),
    "SNAT": (behind_snat, "declined_undecidable"),
    "Podman's published port": (published_on_loopback, "declined_undecidable"),
    "SYN cookies": (under_syn_cookies, "declined_"),
    "window": (over_the_window, "paused_window"),
}


@pytest.mark.parametrize(("make", "counter"), CASES.values(), ids=CASES)
def test_joins_when_it_is_quiet(
    host: Host, enabled: Client, make: Callable[[], None], counter: str
) -> None:
    traffic = host.actor()
    traffic.do(make)
    began = time.monotonic()
    stats = partial(enabled.call, "Stats")
    # in a full window the pair stays on the sockhash, unless its reader is slow
    while make is not over_the_window and not stats()["joined_connections"]:
        assert time.monotonic() - began < WITHIN_S, {k: v for k, v in stats().items() if v}
        time.sleep(0.05)
    left = {name: value for name, value in stats().items() if value}
    assert any(name.startswith(counter) for name in left), left
    before = stats()["redirected_messages"]
    while stats()["redirected_messages"] < before + 100:
        assert time.monotonic() - began < WITHIN_S, {k: v for k, v in stats().items() if v}
        time.sleep(0.05)
    traffic.do(polling.finish)
