"""Reload: another configuration for new connections, or the old one goes on."""

from __future__ import annotations

import signal

import pytest
from dbus_next import DBusError

from support.daemon import load, pins
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.waiting import eventually


@pytest.mark.parametrize("way", ["bus", "ctl", "SIGHUP"])
def test_another_scope_under_traffic(
    host: Host, daemon: DaemonProcess, enabled: Client, way: str
) -> None:
    traffic = host.actor()
    traffic.do(load.start, 4)
    host.overrides["scope"] = {"exclude_ports": [7]}
    host.configure()
    if way == "bus":
        enabled.call("Reload")
    elif way == "ctl":
        assert host.ctl("reload").returncode == 0
    else:
        daemon.signal(signal.SIGHUP)
        eventually(lambda: enabled.get("Scope")["exclude_ports"] == [7], "the scope is reloaded")
    assert enabled.get("Scope")["exclude_ports"] == [7]
    assert enabled.get("State") == "enabled"
    traffic.do(load.advance, 20)
    traffic.do(load.echo_once, 50, 64)
    stats = enabled.call("Stats")
    # those that the old scope had may have joined again
    assert pins.made(stats) == 5
    assert stats["retired_disable"] > 0 and stats["retired_connections"] >= 4
    traffic.do(load.finish)


def test_nothing_new_changes_nothing(host: Host, enabled: Client) -> None:
    before = pins.ids(host.root)
    enabled.call("Reload")
    assert pins.ids(host.root) == before


def test_while_disabled(host: Host, client: Client) -> None:
    host.overrides["scope"] = {"exclude_ports": [7]}
    host.configure()
    client.call("Reload")
    assert client.get("State") == "disabled"
    assert client.get("Scope")["exclude_ports"] == [7]
    assert pins.directories(host.root) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "[scope\n",
        "[scope]\nports = [7]\n",
        "[scope]\ncgroup = '/srt-none'\n",
        "[paths]\nbpffs = '/sys/fs/bpf/elsewhere'\n",
        None,
    ],
    ids=["TOML", "key", "cgroup", "paths", "no file"],
)
def test_a_wrong_file_changes_nothing(
    host: Host, daemon: DaemonProcess, enabled: Client, wrong: str | None
) -> None:
    scope, ids = enabled.get("Scope"), pins.ids(host.root)
    path = host.configure(wrong or "")
    if wrong is None:
        path.unlink()
    elif "[paths]" not in wrong:
        # the paths stay, so that it is the mistake that is refused
        paths = "".join(f"{k} = '{v}'\n" for k, v in host.tables()["paths"].items())
        path.write_text(f"[paths]\n{paths}{wrong}")
    with pytest.raises(DBusError) as caught:
        enabled.call("Reload")
    assert caught.value.type == "org.sockredir.Error.InvalidConfig"
    assert "Traceback" not in caught.value.text
    assert (enabled.get("State"), enabled.get("Scope")) == ("enabled", scope)
    assert pins.ids(host.root) == ids
    daemon.signal(signal.SIGHUP)
    eventually(lambda: "stays in force" in daemon.stderr, "the log says so")
    assert enabled.get("Scope") == scope
