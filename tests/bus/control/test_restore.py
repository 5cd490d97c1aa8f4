"""What is remembered over a reboot, and what an interrupted change left behind."""

from __future__ import annotations

import json
import shutil

import pytest
from dbus_next import DBusError, Variant

from support import cgroups
from support.daemon import load, pins, stall
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.pins import detach


def reboot(host: Host, daemon: DaemonProcess) -> None:
    """bpffs and /run do not outlive one; the state directory does."""
    daemon.stop()
    pins.tear_down(host.root)
    shutil.rmtree(host.runtime, ignore_errors=True)


def test_enabled_again_after_a_reboot(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    reboot(host, daemon)
    host.start()
    client = host.client()
    assert client.get("State") == "enabled"
    host.actor().do(load.echo_once, 50, 64)
    assert client.call("Stats")["redirected_messages"] == 100


def test_scope_of_enable_with_after_a_reboot(
    host: Host, daemon: DaemonProcess, client: Client
) -> None:
    client.call("EnableWith", "a{sv}", {"only_ports": Variant("au", [7])})
    reboot(host, daemon)
    host.start()
    assert host.client().get("Scope")["only_ports"] == [7]


def test_disable_forgets(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    enabled.call("Disable")
    reboot(host, daemon)
    host.start()
    assert host.client().get("State") == "disabled"


def test_cannot_be_restored(host: Host, daemon: DaemonProcess, client: Client) -> None:
    """The cgroup is gone: the daemon stays up and says so, and enables it once it is back."""
    gone = cgroups.create()
    scope = {"cgroup": Variant("s", f"/{gone.name}")}
    try:
        client.call("EnableWith", "a{sv}", scope)
        reboot(host, daemon)
    finally:
        gone.rmdir()
    again = host.start()
    client = host.client()
    assert client.get("State") == "failed"
    assert gone.name in again.stderr
    with pytest.raises(DBusError) as caught:
        client.call("EnableWith", "a{sv}", scope)
    assert caught.value.type == "org.sockredir.Error.InvalidConfig"
    assert client.get("State") == "failed"
    assert gone.name in client.get("Problem")
    assert client.get("Scope")["cgroup"] == f"/{gone.name}"
    assert again.running

    client.follow_state()
    gone.mkdir()
    try:
        client.await_state("enabled")
        assert client.get("Problem") == ""
        client.call("Disable")
    finally:
        gone.rmdir()


def test_disable_ends_failed(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    reboot(host, daemon)
    host.overrides["scope"] = {"cgroup": "/srt-none"}
    again = host.start()
    client = host.client()
    client.follow_state()
    assert client.get("State") == "failed"
    client.call("Disable")
    assert client.get("State") == "disabled"
    again.stop()
    host.overrides.clear()
    host.start()
    assert host.client().get("State") == "disabled"


def test_cgroup_removed_meanwhile(host: Host, daemon: DaemonProcess, client: Client) -> None:
    """The kernel detaches the program with the cgroup; the daemon finds its pins dead."""
    gone = cgroups.create()
    scope = {"cgroup": Variant("s", f"/{gone.name}")}
    client.call("EnableWith", "a{sv}", scope)
    daemon.stop()
    gone.rmdir()
    again = host.start()
    client = host.client()
    assert again.running
    assert client.get("State") == "failed"
    client.call("Disable")
    assert client.get("State") == "disabled"
    assert pins.directories(host.root) == []


WRONG_STATES = {
    "not JSON": "{",
    "another type": "[]",
    "another scope type": '{"enabled": true, "scope": 7}',
    "unknown scope": '{"enabled": true, "scope": {"ports": [7]}}',
    "not text": "\udcff",
}


@pytest.mark.parametrize("text", WRONG_STATES.values(), ids=WRONG_STATES)
@pytest.mark.parametrize("name", ["state/enabled.json", "runtime/counters.json"])
def test_a_broken_file_does_not_keep_the_daemon_down(host: Host, name: str, text: str) -> None:
    path = host.directory / name
    path.parent.mkdir()
    path.write_bytes(text.encode(errors="surrogateescape"))
    daemon = host.start()
    client = host.client()
    assert client.get("State") in ("disabled", "failed")
    assert "Traceback" not in daemon.stderr
    client.call("Enable")
    client.call("Disable")
    assert client.get("State") == "disabled"


def test_broken_counters(host: Host) -> None:
    host.runtime.mkdir()
    (host.runtime / "counters.json").write_text(json.dumps({"redirected_bytes": "many"}))
    daemon = host.start()
    assert host.client().call("Stats")["redirected_bytes"] == 0
    assert "Traceback" not in daemon.stderr


@pytest.mark.parametrize(
    ("intent", "left"), [("kept", ["generation-2"]), ("forgotten", [])], ids=["kept", "forgotten"]
)
def test_interrupted_disable(
    host: Host, daemon: DaemonProcess, enabled: Client, intent: str, left: list[str]
) -> None:
    """A generation without its link to the cgroup is drained under its live traffic."""
    traffic = host.actor()
    traffic.do(load.start, 4)
    traffic.do(load.advance, 20)
    daemon.kill()
    detach(host.root / "generation-1")
    if intent == "forgotten":
        (host.state / "enabled.json").unlink()
    host.start()
    client = host.client()
    client.follow_state()
    client.await_state("enabled" if intent == "kept" else "disabled")
    traffic.do(load.advance, 20)
    stats = client.call("Stats")
    assert stats["retired_disable"] == 4
    # the new generation may have joined some already
    assert stats["map_entries"] == 2 * stats["joined_connections"]
    assert pins.directories(host.root) == left
    traffic.do(load.finish)


def test_interrupted_disable_with_a_stalled_reader(
    host: Host, daemon: DaemonProcess, enabled: Client
) -> None:
    program = host.actor()
    program.do(stall.send_unread, 300_000)
    daemon.kill()
    detach(host.root / "generation-1")
    (host.state / "enabled.json").unlink()
    host.start()
    client = host.client()
    client.follow_state()
    assert client.get("State") == "draining"
    program.do(stall.read_all)
    client.await_state("disabled")
    assert pins.directories(host.root) == []


@pytest.mark.parametrize("attached", [True, False])
def test_staging_directory(
    host: Host, daemon: DaemonProcess, enabled: Client, attached: bool
) -> None:
    enabled.call("Stats")
    daemon.kill()
    (host.state / "enabled.json").unlink()
    if not attached:
        detach(host.root / "generation-1")
    (host.root / "generation-1").rename(host.root / "staging-1")
    host.start()
    assert pins.directories(host.root) == []
    client = host.client()
    assert client.get("State") == "disabled"
    client.call("Enable")
    assert client.get("State") == "enabled"


@pytest.mark.parametrize("tenths", range(1, 10, 2))
def test_killed_while_enabling(host: Host, tenths: int) -> None:
    """At various points of a change that takes about half a second."""
    daemon = host.start()
    client = host.client()
    client.begin("Enable")
    daemon.kill_after(tenths / 20)
    host.start()
    client = host.client()
    state = client.get("State")
    assert state in ("enabled", "disabled")
    assert len(pins.directories(host.root)) == (state == "enabled")
    client.call("Enable")
    host.actor().do(load.echo_once, 10, 64)
    assert client.call("Stats")["redirected_messages"] == 20
    client.call("Disable")
    assert pins.directories(host.root) == []
