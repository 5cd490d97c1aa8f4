"""sockredirctl bench: what it measures, who may, what it leaves, and what it does not touch."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from dbus_next import DBusError

import sockredirctl.__main__
from bus.check.test_call import exercises
from sockredirctl import bench
from sockredird.check import sandbox
from sockredird.kernel import cgroup
from support.daemon import load, pins
from support.daemon.client import Client, message
from support.daemon.host import Host
from support.daemon.users import main_as_nobody
from support.traffic import listen
from support.waiting import eventually

Row = dict[str, Any]
KEYS = {"work", "unit", "plain", "accelerated", "ratio", "low", "high"}


def check_rows(rows: list[Row]) -> None:
    assert [row["unit"] for row in rows] == ["us", "us", "us", "MB/s", "MB/s"]
    for row in rows:
        assert row.keys() == KEYS
        assert row["plain"] > 0 and row["accelerated"] > 0
        assert 0 < row["low"] <= row["ratio"] <= row["high"]


def test_whether_enabled_or_not(host: Host, client: Client) -> None:
    """Nothing is counted, pinned or enabled by it."""
    check_rows(client.call("Bench", "q", 0))
    assert (client.get("State"), pins.directories(host.root)) == ("disabled", [])
    client.call("Enable")
    traffic = host.actor()
    traffic.do(load.start, 4, 0.01)
    traffic.do(load.advance, 10)
    before = client.call("Stats")
    check_rows(client.call("Bench", "q", 0))
    traffic.do(load.finish)
    after = client.call("Stats")
    # on a busy machine a connection of the traffic may leave, and join again
    assert pins.made(after) == pins.made(before)
    assert after["declined_connections"] == before["declined_connections"]


def test_the_live_datapath_does_not_notice(host: Host) -> None:
    """Its scope is the cgroup in which the daemon measures."""
    daemon = host.start()
    (host.cgroup / "cgroup.procs").write_text(str(daemon.pid))
    client = host.client()
    client.call("Enable")
    before = client.call("Stats")
    check_rows(client.call("Bench", "q", 0))
    assert client.call("Stats") == before


def test_a_port_of_ones_own(client: Client) -> None:
    with listen() as holder:
        port = holder.getsockname()[1]
        with pytest.raises(DBusError) as raised:
            client.call("Bench", "q", port)
    assert raised.value.type == "org.sockredir.Error.InvalidConfig"
    assert str(port) in raised.value.text and "in use" in raised.value.text
    check_rows(client.call("Bench", "q", port))


def test_for_root_only(host: Host, client: Client) -> None:
    status, text = main_as_nobody(
        sockredirctl.__main__.main, "bench", DBUS_SYSTEM_BUS_ADDRESS=host.bus
    )
    assert status == 4 and "not allowed" in text


def test_two_at_a_time(host: Host, client: Client) -> None:
    """One after the other, with a check between."""
    other = host.client()
    other.begin("Check")
    client.begin("Check")
    check_rows(client.call("Bench", "q", 0))


def test_on_the_command_line(host: Host, client: Client) -> None:
    done = host.ctl("bench", "--json")
    assert done.returncode == 0, done.stderr
    check_rows(json.loads(done.stdout))
    done = host.ctl("bench")
    assert done.returncode == 0
    assert "round trip, 64 B, one CPU" in done.stdout
    assert "orth it here: round trips are" in done.stdout
    assert host.ctl("bench", "--port", "0").returncode == 2
    assert host.ctl("bench", "--timeout", "0.2").returncode == 5


@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.6, 2.5])
def test_nothing_stays_of_one_that_was_killed(host: Host, seconds: float) -> None:
    daemon = host.start()
    client = host.client()
    client.send(message("Bench", "q", 0))
    daemon.kill_after(seconds)
    again = host.start()
    assert pins.directories(host.root) == []
    assert not (cgroup.own() / sandbox._name(host.root)).exists()
    assert pins.held_by(again.pid) == set()
    eventually(lambda: not exercises(daemon.pid), "its children end")


def row(ratio: float, unit: str = "us", spread: float = 0.02) -> Row:
    return {"ratio": ratio, "low": ratio - spread, "high": ratio + spread, "unit": unit}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(1.6), row(1.2), row(1.0, "MB/s")], "Worth it here: round trips are 1.2 to 1.6 times"),
        ([row(1.6), row(1.02)], "up to 1.6 times as fast"),
        ([row(1.6), row(1.0, "MB/s")], "streams are as fast as plain TCP"),
        (
            [row(1.0), row(0.8, "MB/s")],
            "Not worth it here: round trips are as fast as plain TCP, streams are",
        ),
        (
            [row(1.6), row(0.8)],
            "Not worth it here: round trips are faster or slower, depending on",
        ),
        ([row(1.5, spread=0.6)], "Not worth it here: round trips are as fast as plain TCP"),
    ],
)
def test_the_sentence(rows: list[Row], words: str) -> None:
    assert words in bench.sentence(rows)


def test_the_table_lines_up() -> None:
    rows = [{**row(1.6), "work": "round trip, 64 B, one CPU", "plain": 12.3, "accelerated": 7.6}]
    table = bench.text(rows).splitlines()
    assert table[0].index("plain TCP") + len("plain TCP") == table[1].index("12.3 us") + 7


@pytest.mark.parametrize("seconds", [0.3, 1.5])
def test_stopping_waits_for_one(host: Host, seconds: float) -> None:
    daemon = host.start()
    host.client().send(message("Bench", "q", 0))
    time.sleep(seconds)  # a moment that nothing announces
    assert daemon.stop() == 0
    assert pins.directories(host.root) == []
    assert not (cgroup.own() / sandbox._name(host.root)).exists()
    assert exercises(daemon.pid) == []


def one_cpu(work: str, plain: float, accelerated: float) -> Row:
    return {"work": work, "unit": "us", "plain": plain, "accelerated": accelerated}


def test_the_estimate() -> None:
    rows = [
        one_cpu("round trip, 64 B, one CPU", 20.0, 10.0),
        one_cpu("round trip, 8 KiB, one CPU", 40.0, 10.0),
    ]
    small = {"client_messages_per_second": 10_000, "client_bytes_per_second": 1_000_000}
    large = {"server_messages_per_second": 10_000, "server_bytes_per_second": 100_000_000}
    text = bench.estimate(rows, [small | large, {"leaving": True}])
    # 10,000 times 5 us, and 10,000 times 15 us
    assert "20,000 messages per second, they save 0.20 s" in text
    assert "2 busiest" in text
    for nothing in (bench.estimate(rows, []), bench.estimate(rows[:1], [small])):
        assert nothing.startswith("For an estimate")
