"""list, stats, trace, top and the metrics agree with what 200 clients counted, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from support import mix
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.trace import Trace

REDIS, HTTP, STORM = 60, 40, 100


def sums(counts: list[mix.Count]) -> int:
    return sum(count.sent + count.received for count in counts)


def by_tcp(lines: list[dict[str, Any]]) -> int:
    """Bytes: a request that is sent before the server has seen the handshake's end goes by TCP."""
    return sum(line["client_tcp_bytes"] + line["server_tcp_bytes"] for line in lines)


def carried(lines: list[dict[str, Any]]) -> list[mix.Count]:
    """What lines of list or trace say, as the clients count; in an order of its own."""
    return sorted(
        mix.Count(
            line["client"],
            line["server"],
            line["client_sent_bytes"] + line["client_tcp_bytes"],
            line["server_sent_bytes"] + line["server_tcp_bytes"],
        )
        for line in lines
    )


def test_a_mix_of_programs(
    host: Host,
    enabled: Client,
    ask: Callable[..., Any],
    tracing: Callable[[Callable[[], Any]], Trace],
) -> None:
    actor = host.actor()
    ports = actor.do(mix.serve)
    trace = tracing(lambda: actor.do(mix.storm, 1, "other echo"))
    before = ask("stats")
    held = sorted(actor.do(mix.talk, REDIS, HTTP, 3))
    shot = actor.do(mix.storm, STORM)
    assert len(held) + len(shot) == 200

    listed = ask("list", "--limit", "0")
    assert carried(listed) == held
    assert carried(ask("list", "--limit", "1000")) == held
    redis = [count for count in held if count.server == f"127.0.0.1:{ports['redis']}"]
    assert len(redis) == REDIS
    assert carried(ask("list", "--port", str(ports["redis"]))) == redis
    assert carried(ask("list", "--pid", str(actor.pid))) == held
    assert carried(ask("list", "--unit", host.scope)) == held
    totals = [line["client_sent_bytes"] + line["server_sent_bytes"] for line in listed]
    assert totals == sorted(totals, reverse=True)
    assert {line["client_pid"] for line in listed} == {actor.pid}
    assert {line["server_comm"] for line in listed} == {"redis-server", "python3"}

    stats = ask("stats")
    redirected = stats["redirected_bytes"] - before["redirected_bytes"]
    assert stats["active_connections"] == len(held)
    scraped = {
        sample.name: sample.value
        for family in text_string_to_metric_families(
            host.ctl("stats", "--format", "prometheus").stdout
        )
        for sample in family.samples
        if not sample.labels
    }
    assert scraped["sockredir_redirected_bytes_total"] == stats["redirected_bytes"]
    assert scraped["sockredir_active_connections"] == len(held)

    actor.do(mix.hang_up)

    expected = {(count.client, count.server) for count in held + shot}

    def closed_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of the run that counts."""
        closed = [e for e in events if e["event"] == "closed"]
        return [e for e in closed if (e["client"], e["server"]) in expected]

    events = trace.until(lambda events: len(closed_of(events)) >= len(held) + len(shot))
    closed = closed_of(events)
    assert carried(closed) == sorted(held + shot)
    assert redirected == sums(held) + sums(shot) - by_tcp(closed)
    assert redirected > by_tcp(closed)
    assert sum(e["dropped"] for e in events) == 0
    assert {e["client_pid"] for e in closed} == {actor.pid}
    actor.do(mix.stop)


def test_the_counts_can_disagree(host: Host, enabled: Client, ask: Callable[..., Any]) -> None:
    """The oracle of the test above: a byte the client did not count is noticed."""
    actor = host.actor()
    actor.do(mix.serve)
    held = actor.do(mix.talk, 1, 0, 1)
    actor.do(say_more)
    (line,) = ask("list")
    (count,) = held
    assert carried([line]) == [replace(count, sent=count.sent + 1)]
    actor.do(mix.stop)


def say_more() -> None:
    mix._held[0].sock.sendall(b"*")
