"""A reader that sleeps inside recv() is left on TCP in time: before its cgroup can be frozen."""

from __future__ import annotations

import pytest

from support import cgroups
from support.daemon import freezing
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess

ROUNDS = 5


@pytest.mark.parametrize(
    "host", [{"scope": {"blocking_readers": "tcp"}}], indirect=True, ids=["tcp"]
)
def test_frozen_reader(host: Host, daemon: DaemonProcess, client: Client) -> None:
    client.call("Enable")
    program = host.actor()
    for _ in range(ROUNDS):
        assert program.do(freezing.recv_while_frozen, str(host.cgroup)) == "b'data'"
    stats = client.call("Stats")
    assert stats["accelerated_connections"] == stats["retired_blocking_reader"] == ROUNDS
    cgroups.empty(host.cgroup)


@pytest.mark.parametrize(
    "host", [{"scope": {"blocking_readers": "accelerate"}}], indirect=True, ids=["accelerate"]
)
def test_it_would_be_noticed(host: Host, daemon: DaemonProcess, client: Client) -> None:
    """What the rule is for: on the sockhash that recv() fails."""
    client.call("Enable")
    outcome = host.actor().do(freezing.recv_while_frozen, str(host.cgroup))
    assert outcome == "Resource temporarily unavailable"
