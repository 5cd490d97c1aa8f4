"""sockredirctl bench: what it measures, who may, what it leaves, and what it does not touch."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from dbus_next import DBusError, Variant

import sockredirctl.__main__
from bus.check.test_call import exercises
from sockredirctl import bench
from sockredird.check import sandbox
from sockredird.kernel import cgroup
from support.daemon import load, pins
from support.daemon.client import Client, message
from support.daemon.host import Host
from support.daemon.users import main_as_nobody
from support.namespaces import enter_network
from support.traffic import listen
from support.waiting import eventually

Row = dict[str, Any]
KEYS = {"work", "unit", "plain", "accelerated", "ratio", "low", "high"}
KEYS |= {"plain_cpu", "accelerated_cpu"}


def check_rows(rows: list[Row]) -> None:
    assert [row["unit"] for row in rows] == ["us", "us", "us", "MB/s", "MB/s"]
    for row in rows:
        assert row.keys() == KEYS
        assert row["plain"] > 0 and row["accelerated"] > 0
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        for kind in ("plain", "accelerated"):
            # medians of the same rounds; no round trip takes more processors than two
            longest = 2.5 * row[kind] if row["unit"] == "us" else 0
            assert 0 <= row[f"{kind}_cpu"] <= longest
            assert (row[f"{kind}_cpu"] > 0) == (row["unit"] == "us")


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
        options = {"port": Variant("q", port)}
        for call in (("Bench", "q", port), ("BenchWith", "a{sv}", options)):
            with pytest.raises(DBusError) as raised:
                client.call(*call)
            assert raised.value.type == "org.sockredir.Error.InvalidConfig"
            assert str(port) in raised.value.text and "in use" in raised.value.text
    check_rows(client.call("Bench", "q", port))
    result = client.call("BenchWith", "a{sv}", options)
    assert result.keys() == {"rows", "estimate"}
    check_rows(result["rows"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"ports": Variant("q", 7)},
        {"port": Variant("s", "7")},
        {"port": Variant("b", True)},
        {"port": Variant("u", 65536)},
        {"port": Variant("i", -1)},
    ],
    ids=["key", "string", "boolean", "too large", "negative"],
)
def test_wrong_options(client: Client, wrong: dict[str, Variant]) -> None:
    with pytest.raises(DBusError) as raised:
        client.call("BenchWith", "a{sv}", wrong)
    assert raised.value.type == "org.sockredir.Error.InvalidConfig"
    assert "port" in raised.value.text


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


# for the first second, BenchWith looks at connections
@pytest.mark.parametrize("seconds", [0.5, 1.3, 2.0, 2.6, 3.5])
def test_nothing_stays_of_one_that_was_killed(host: Host, seconds: float) -> None:
    daemon = host.start()
    client = host.client()
    client.send(message("BenchWith", "a{sv}", {}))
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


@pytest.mark.parametrize("seconds", [0.5, 1.3, 2.5])
def test_stopping_waits_for_one(host: Host, seconds: float) -> None:
    daemon = host.start()
    host.client().send(message("BenchWith", "a{sv}", {}))
    time.sleep(seconds)  # a moment that nothing announces
    assert daemon.stop() == 0
    assert pins.directories(host.root) == []
    assert not (cgroup.own() / sandbox._name(host.root)).exists()
    assert exercises(daemon.pid) == []


def test_the_estimate_is_of_what_is_there(host: Host) -> None:
    """None of no connection; of those on TCP what they would save; of accelerated ones the rest."""
    traffic = host.actor()
    traffic.do(enter_network)  # where nobody else talks
    daemon = host.launch(under=("nsenter", f"--net=/proc/{traffic.pid}/ns/net"))
    # the abstract socket of sd_notify is in another namespace
    eventually(lambda: "ready:" in daemon.stderr, "the daemon serves")
    client = host.client()
    done = host.ctl("bench")
    assert done.stdout.splitlines()[-1].startswith("This host's own connections: none between")
    traffic.do(load.start, 4, 0.005)
    traffic.do(load.advance, 10)
    kinds = client.call("BenchWith", "a{sv}", {})["estimate"]
    assert kinds["accelerated"] == NOTHING
    assert kinds["tcp"]["connections"] == 4
    # less than 200 rounds per second, and several on the way at once may share a segment
    assert 100 < kinds["tcp"]["messages_per_second"] < 2 * 4 * 200
    assert sum(load.SIZES) / 6 / 2 < kinds["tcp"]["message_bytes"] < 2 * sum(load.SIZES) / 6
    last = host.ctl("bench").stdout.splitlines()[-1]
    assert last.startswith("This host's own connections: 4 between local programs exchange ")
    assert last.endswith("(an estimate).")
    traffic.do(load.finish)
    client.call("Enable")
    traffic.do(load.start, 3, 0.005)
    traffic.do(load.advance, 10)
    kinds = client.call("BenchWith", "a{sv}", {})["estimate"]
    traffic.do(load.finish)
    assert kinds["tcp"] == NOTHING
    assert kinds["accelerated"]["connections"] == 3
    assert 100 < kinds["accelerated"]["messages_per_second"] < 2 * 3 * 200


NOTHING = {
    "connections": 0,
    "messages_per_second": 0,
    "message_bytes": 0,
    "saved_cpu_seconds": 0.0,
    "large_connections": 0,
}
SOME = NOTHING | {"connections": 3, "messages_per_second": 41200, "message_bytes": 180}


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (
            {"tcp": SOME | {"saved_cpu_seconds": 0.112}},
            "This host's own connections: 3 between local programs exchange 41,200 messages of 180 "
            "bytes per second by plain TCP; accelerating them would save about 0.11 s of processor "
            "time per second (an estimate).",
        ),
        (
            {"tcp": SOME | {"saved_cpu_seconds": 0.0004, "connections": 1, "large_connections": 2}},
            "1 between local programs exchanges 41,200 messages of 180 bytes per second by plain "
            "TCP; accelerating them would save less than 0.01 s of processor time per second, and "
            "2 with messages larger than 16 KiB gain nothing (an estimate).",
        ),
        ({"tcp": SOME | {"saved_cpu_seconds": -0.1}}, "would save no processor time (an estimate)"),
        (
            {"tcp": NOTHING | {"large_connections": 1}},
            "on plain TCP: 1 with messages larger than 16 KiB gains nothing (an estimate).",
        ),
        ({"tcp": NOTHING, "accelerated": NOTHING}, "none between two local programs carried"),
        (
            {"tcp": NOTHING, "accelerated": SOME | {"saved_cpu_seconds": 0.2}},
            "This host's accelerated connections: 3 between local programs exchange 41,200 "
            "messages of 180 bytes per second; acceleration saves about 0.20 s of processor time "
            "per second (an estimate).",
        ),
        ({"accelerated": NOTHING}, "There is no estimate"),
        ({}, "There is no estimate"),
    ],
)
def test_the_sentence_of_the_estimate(kinds: dict[str, Row], words: str) -> None:
    text = bench.estimate(kinds)
    assert words in text
    assert len(text.splitlines()) == 1
