"""Learned listeners are listed, survive the daemon, its datapath and the boot, and are removed."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from dbus_next import DBusError

from sockredird.kernel.addresses import netns_cookie
from support.daemon.actor import Actor
from support.daemon.client import Client, plain
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.traffic import Connection, connect, listen
from support.waiting import eventually

_listeners: dict[int, socket.socket] = {}
_connections: list[Connection] = []


def serve() -> int:
    """In the actor, as all below: a listener's port."""
    listener = listen()
    port: int = listener.getsockname()[1]
    _listeners[port] = listener
    return port


def meet(port: int) -> str:
    """One more connection to it; the client's address."""
    _connections.append(connect(_listeners[port]))
    name, number = _connections[-1].client.getsockname()
    return f"{name}:{number}"


def ask_for_lowat() -> None:
    _connections[-1].server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)


def teach(actor: Actor) -> int:
    port: int = actor.do(serve)
    actor.do(meet, port)
    actor.do(ask_for_lowat)
    return port


def ids(client: Client) -> list[str]:
    return [entry["id"] for entry in client.call("Learned")]


def accelerated(client: Client, actor: Actor, port: int) -> bool:
    """Whether the next connection to the port is."""
    before = client.call("Stats")["accelerated_connections"]
    actor.do(meet, port)
    return bool(client.call("Stats")["accelerated_connections"] == before + 1)


def test_an_entry(host: Host, enabled: Client) -> None:
    assert enabled.call("Learned") == []
    began = time.time() * 1e6
    actor = host.actor()
    port = teach(actor)
    (entry,) = enabled.call("Learned")
    assert began - 1e6 < entry.pop("since") <= time.time() * 1e6
    assert entry.pop("comm")
    assert entry.pop("detail")
    assert entry == {
        "id": f"host:{port}",
        "netns": netns_cookie(),
        "port": port,
        "why": "rcvlowat",
        "pid": actor.pid,
        "cgroup": host.scope,
    }
    assert not accelerated(enabled, actor, port)
    assert enabled.call("Stats")["declined_learned"] == 1
    assert accelerated(enabled, actor, actor.do(serve))


def test_its_event(host: Host, enabled: Client) -> None:
    enabled.call("Subscribe")
    actor = host.actor()
    port = teach(actor)
    signal = enabled.await_signal(
        lambda message: message.member == "Event" and plain(message.body[0])["event"] == "learned"
    )
    event = plain(signal.body[0])
    assert (event["reason"], event["server"]) == ("rcvlowat", f"127.0.0.1:{port}")
    assert event["server_pid"] == actor.pid
    assert event["server_comm"]


def test_the_pair_is_retired_at_once(host: Host, enabled: Client) -> None:
    teach(host.actor())
    eventually(lambda: enabled.call("Stats")["retired_rcvlowat"] == 1, "retired")
    assert enabled.call("Stats")["map_entries"] == 0


@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM", "learned by nobody's eyes"])
def test_a_restart(host: Host, daemon: DaemonProcess, enabled: Client, way: str) -> None:
    actor = host.actor()
    ports = [teach(actor)]
    before = enabled.call("Learned")
    if way == "SIGTERM":
        daemon.stop()
    else:
        daemon.kill()
    if way.startswith("learned"):
        ports.append(teach(actor))
    host.start()
    client = host.client()
    assert sorted(ids(client)) == sorted(f"host:{port}" for port in ports)
    assert before[0] in client.call("Learned")
    assert not any(accelerated(client, actor, port) for port in ports)


def test_another_datapath(host: Host, enabled: Client) -> None:
    """Disable and Enable, and a generation that takes over from another."""
    actor = host.actor()
    port = teach(actor)
    before = enabled.call("Learned")
    enabled.call("Disable")
    assert enabled.call("Learned") == before
    enabled.call("Enable")
    assert not accelerated(enabled, actor, port)
    host.overrides["limits"] = {"max_connections": 1000}
    host.configure()
    enabled.call("Reload")
    assert not accelerated(enabled, actor, port)
    assert enabled.call("Learned") == before


def test_a_boot(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    """Cookies of network namespaces are others after it; that of the host is known again."""
    actor = host.actor()
    ports = [teach(actor), teach(actor)]
    enabled.call("Learned")
    enabled.call("Disable")
    daemon.stop()
    path = host.state / "learned.json"
    kept = json.loads(path.read_text())
    assert len(kept["entries"]) == 2
    kept["boot"], kept["host"] = "another", 4711
    kept["entries"][0]["netns"] = 4711
    path.write_text(json.dumps(kept))
    host.start()
    client = host.client()
    port = kept["entries"][0]["port"]
    assert ids(client) == [f"host:{port}"]
    client.call("Enable")
    assert not accelerated(client, actor, port)
    assert accelerated(client, actor, (set(ports) - {port}).pop())


DAMAGED: dict[str, Any] = {
    "no JSON": "{",
    "another type": [1],
    "entries of another type": {"entries": 7},
    "an entry of another type": {"entries": [3, None, []]},
    "a missing key": {"entries": [{"netns": 1, "port": 2}]},
    "a number out of range": {
        "entries": [
            {
                "netns": -1,
                "port": 1 << 40,
                "why": "ulp",
                "since": 0,
                "pid": 1,
                "comm": "x",
                "cgroup": "/",
            }
        ]
    },
    "an unknown reason": {
        "entries": [
            {
                "netns": 1,
                "port": 2,
                "why": "weather",
                "since": 0,
                "pid": 1,
                "comm": "x",
                "cgroup": "/",
            }
        ]
    },
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file(host: Host, content: Any) -> None:
    host.state.mkdir(parents=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if isinstance(content, dict):
        content = {"boot": boot, "host": 1, **content}
    text = content if isinstance(content, str) else json.dumps(content)
    (host.state / "learned.json").write_text(text)
    host.start()
    client = host.client()
    client.call("Enable")
    assert client.call("Learned") == []
    teach(host.actor())
    assert len(client.call("Learned")) == 1


@pytest.mark.parametrize("state", ["enabled", "disabled"])
def test_forget(host: Host, daemon: DaemonProcess, enabled: Client, state: str) -> None:
    actor = host.actor()
    one, two, three = (teach(actor) for _ in range(3))
    assert len(ids(enabled)) == 3
    if state == "disabled":
        enabled.call("Disable")
    enabled.call("Forget", "s", f"host:{one}")
    assert ids(enabled) == sorted([f"host:{two}", f"host:{three}"])
    for unknown in (f"host:{one}", "host:", "7", "host:x", f"host:{two} "):
        with pytest.raises(DBusError) as refusal:
            enabled.call("Forget", "s", unknown)
        assert refusal.value.type == "org.sockredir.Error.InvalidConfig"
        assert repr(unknown) in refusal.value.text
    assert len(ids(enabled)) == 2
    daemon.kill()
    host.start()
    client = host.client()
    assert len(ids(client)) == 2
    client.call("Forget", "s", "")
    client.call("Forget", "s", "")
    assert ids(client) == []
    client.call("Enable")
    assert all(accelerated(client, actor, port) for port in (one, two, three))


def test_the_command(host: Host, enabled: Client) -> None:
    assert host.ctl("learned").stdout == "no listener is learned\n"
    actor = host.actor()
    port, other = teach(actor), teach(actor)
    shown = host.ctl("learned")
    assert (shown.returncode, shown.stderr) == (0, "")
    title, *lines = shown.stdout.splitlines()
    assert title.split() == ["LISTENER", "SINCE", "CGROUP", "WHY"]
    first, second = sorted(lines)
    assert {first.split()[0], second.split()[0]} == {f"host:{port}", f"host:{other}"}
    assert f"[{actor.pid}] set SO_RCVLOWAT" in first
    assert json.loads(host.ctl("learned", "--json").stdout) == enabled.call("Learned")
    assert host.ctl("learned", "--forget", f"host:{port}").returncode == 0
    assert ids(enabled) == [f"host:{other}"]
    again = host.ctl("learned", "--forget", f"host:{port}")
    assert (again.returncode, again.stdout) == (1, "")
    assert f"host:{port}" in again.stderr
    for wrong in (["--forget", ""], ["--forget", "x", "--all"]):
        assert host.ctl("learned", *wrong).returncode == 2
    assert host.ctl("learned", "--all").returncode == 0
    assert ids(enabled) == []


def test_explain(host: Host, enabled: Client) -> None:
    actor = host.actor()
    port = teach(actor)
    name = actor.do(meet, port)
    enabled.call("Learned")
    connection, listener = (
        [json.loads(host.ctl("explain", *arguments, "--json").stdout)[0]]
        for arguments in ((name, f"127.0.0.1:{port}"), ("--port", str(port)))
    )
    for (answer,), state in ((connection, "tcp"), (listener, "out_of_scope")):
        assert (answer["state"], answer["reason"]) == (state, "learned")
        assert f"(pid {actor.pid}) set SO_RCVLOWAT" in answer["detail"]
