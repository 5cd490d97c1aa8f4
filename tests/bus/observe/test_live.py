"""What enable, status, explain and the metrics say of connections that were established before."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from support.daemon import load, polling
from support.daemon.client import Client
from support.daemon.host import Host
from support.waiting import eventually

POLL, BLOCK = 6, 3
pytestmark = pytest.mark.parametrize(
    "host", [{"scope": {"blocking_readers": "tcp"}}], indirect=True, ids=["tcp"]
)


def left(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("LiveConnections")["left"]
    return found


def test_enable_says_how_many_joined(host: Host, enabled: Client) -> None:
    client = enabled  # what it takes to compile is not asked here
    client.call("Disable")
    traffic = host.actor()
    traffic.do(polling.start, POLL)
    done = host.ctl("enable")
    assert done.returncode == 0, done.stderr
    assert f"\n{POLL} established connections have joined; " in done.stdout
    assert client.call("Stats")["joined_connections"] == POLL
    assert f" in all, {POLL} joined " in " ".join(host.ctl("status").stdout.split())
    metrics = host.ctl("stats", "--format", "openmetrics").stdout
    assert f"\nsockredir_joined_connections_total {POLL}.0\n" in metrics
    assert "joined" not in host.ctl("enable").stdout, "nothing was changed"
    traffic.do(polling.finish)


def test_enable_where_nothing_carries_messages(host: Host, client: Client) -> None:
    """For how long it waits is in tests/unit/sockredirctl/test_enable.py."""
    assert "\nNo established connection has joined yet; " in host.ctl("enable").stdout


def test_no_block(host: Host, client: Client) -> None:
    traffic = host.actor()
    traffic.do(polling.start, 2)
    done = host.ctl("enable", "--no-block")
    assert (done.returncode, done.stdout.count("\n")) == (0, 2), done.stdout
    traffic.do(polling.finish)


def test_blocking_readers_are_counted_by_unit(
    host: Host, client: Client, ask: Callable[..., Any]
) -> None:
    polls, blocks = host.actor(), host.actor()
    polls.do(polling.start, POLL)
    blocks.do(load.start, 2 * BLOCK, 0.01)
    client.call("Enable")
    eventually(lambda: len(left(client)) == 1, "blocking readers are told of")
    # a pipelined conversation is seldom asleep: what each look finds of those differs
    eventually(lambda: left(client)[0]["connections"] >= BLOCK, "half of them always sleep")
    (one,) = left(client)
    assert (one["unit"], one["reason"]) == (host.scope, "blocking_reader")
    text = " ".join(host.ctl("status").stdout.split())
    assert f" of {host.scope}: a program sleeps inside recv(), which " in text
    assert 'blocking_readers = "tcp"' in text
    assert json.loads(host.ctl("status", "--json").stdout)["LiveConnections"]["joined"] == POLL
    answers = [ask("explain", *ends)[0] for ends in blocks.do(load.addresses)]
    told = [a["detail"] for a in answers if a["reason"] == "blocking_reader"]
    assert len(told) >= BLOCK, answers
    assert all(detail.startswith("the server's program sleeps inside recv(), ") for detail in told)
    blocks.do(load.finish)
    polls.do(polling.finish)
    eventually(lambda: not left(client), "it is known that they have ended")


def test_an_idle_one_joins_when_it_is_used(
    host: Host, client: Client, ask: Callable[..., Any]
) -> None:
    traffic = host.actor()
    traffic.do(polling.start, 2)
    traffic.do(polling.pause)
    ends = traffic.do(polling.addresses)[0]
    client.call("Enable")
    eventually(lambda: client.get("LiveConnections")["looks"] >= 2, "two looks")
    (answer,) = ask("explain", *ends)
    assert (answer["state"], answer["reason"]) == ("tcp", "before_enable")
    assert answer["detail"].endswith("joins when it carries messages and its readers poll")
    traffic.do(polling.resume)
    eventually(lambda: ask("explain", *ends)[0]["state"] == "accelerated", "it joins")
    traffic.do(polling.finish)
