"""list, stats, trace, top and the metrics agree with what 200 clients counted, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from support import mix
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.trace import Trace

REDIS, HTTP, STORM = 60, 40, 100


def sums(counts: dict[str, mix.Count]) -> int:
    return sum(sent + received for sent, received in counts.values())


def carried(lines: list[dict[str, Any]]) -> dict[str, mix.Count]:
    """What lines of list or trace say, as the clients count."""
    return {
        line["client"]: (line["client_sent_bytes"], line["server_sent_bytes"]) for line in lines
    }


def test_a_mix_of_programs(
    host: Host,
    enabled: Client,
    ask: Callable[..., Any],
    tracing: Callable[[Callable[[], Any]], Trace],
) -> None:
    actor = host.actor()
    ports = actor.do(mix.serve)
    trace = tracing(lambda: actor.do(mix.storm, 1))
    before = ask("stats")["redirected_bytes"]

    held = actor.do(mix.talk, REDIS, HTTP, 3)
    shot = actor.do(mix.storm, STORM)
    assert len(held) + len(shot) == 200

    listed = ask("list", "--limit", "0")
    assert carried(listed) == held
    assert carried(ask("list", "--limit", "1000")) == held
    assert carried(ask("list", "--port", str(ports["redis"]))) == dict(list(held.items())[:REDIS])
    assert carried(ask("list", "--pid", str(actor.pid))) == held
    assert carried(ask("list", "--unit", host.scope)) == held
    totals = [sum(carried([line])[line["client"]]) for line in listed]
    assert totals == sorted(totals, reverse=True)
    assert {line["client_pid"] for line in listed} == {actor.pid}
    assert {line["server_comm"] for line in listed} == {"redis-server", "python3"}

    stats = ask("stats")
    assert stats["redirected_bytes"] - before == sums(held) + sums(shot)
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
    everything = {**held, **shot}

    def all_closed(events: list[dict[str, Any]]) -> bool:
        return everything.keys() <= {e["client"] for e in events if e["event"] == "closed"}

    events = trace.until(all_closed)
    closed = [e for e in events if e["event"] == "closed" and e["client"] in everything]
    assert carried(closed) == everything
    assert all(e["client_tcp_bytes"] == e["server_tcp_bytes"] == 0 for e in closed)
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
    ((sent, received),) = held.values()
    assert carried([line]) == {line["client"]: (sent + 1, received)}
    actor.do(mix.stop)


def say_more() -> None:
    mix._held[0].sock.sendall(b"*")
