"""Check as a call: who may, how often, what it leaves, and what it does not touch."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

import sockredirctl.__main__
from bus.service.test_capabilities import bounding_set, limited_to
from sockredirctl import check
from sockredird.check import sandbox
from sockredird.kernel import cgroup
from support import cgroups, textbook
from support.daemon import load, pins
from support.daemon.client import Client, message
from support.daemon.host import Host
from support.daemon.users import as_nobody, main_as_nobody
from support.waiting import eventually

Finding = dict[str, str]
HOST_FACTS = {"listeners", "other_programs", "rps", "firewall", "qdiscs", "packet_programs"}


def runs(host: Host) -> int:
    logs = (log.read_text() for log in host.directory.glob("stderr-*"))
    return sum(text.count("tried the kernel") for text in logs)


def check_many(address: str, times: int) -> list[list[Finding]]:
    with Client(address) as client:
        replies = client.call_all(*[message("Check") for _ in range(times)])
        assert {reply.error_name for reply in replies} == {None}
        return [[{k: v.value for k, v in item.items()} for item in r.body[0]] for r in replies]


def test_anybody_may_and_all_share_one_run(host: Host, client: Client) -> None:
    found = as_nobody(check_many, host.bus, 20)
    assert runs(host) == 1
    assert all(answer == found[0] for answer in found)
    as_nobody(check_many, host.bus, 5)  # a while ago is good enough for nobody
    assert runs(host) == 1
    client.call("Check")  # not for root
    assert runs(host) == 2


def test_only_root_is_told_what_others_run(host: Host, client: Client, bpffs: Path) -> None:
    with textbook.attached(bpffs / "others", host.cgroup):
        all_of_it = {finding["name"]: finding["detail"] for finding in client.call("Check")}
        (told,) = as_nobody(check_many, host.bus, 1)
    assert "(id " in all_of_it["other_programs"]
    for finding in told:
        assert all_of_it[finding["name"]].startswith(finding["detail"])
        assert "(id " not in finding["detail"]


@pytest.mark.parametrize("alone", [True, False])
def test_the_live_datapath_does_not_notice(host: Host, alone: bool) -> None:
    """Its scope is the cgroup in which the daemon has the kernel tried, or above that."""
    daemon = host.start()
    traffic = host.actor()
    (host.cgroup / "cgroup.procs").write_text(str(daemon.pid))
    if alone:  # the daemon's own cgroup is the private one
        aside = cgroups.create()
        host.stack.callback(cgroups.remove, aside)
        (aside / "cgroup.procs").write_text(str(traffic.pid))
    client = host.client()
    client.call("Enable")
    assert client.get("Kernel")["passed"] > 8
    if not alone:
        traffic.do(load.start, 4)
        traffic.do(load.advance, 10)
    before = client.call("Stats")
    for _ in range(2):
        assert "fail" not in {finding["status"] for finding in client.call("Check")}
    assert runs(host) == 3
    after = client.call("Stats")
    for name in ("redirected_messages", "redirected_bytes"):
        assert (after.pop(name) > before.pop(name)) is not alone
    for stats in (before, after):  # the traffic's own
        for name in ("paused_revalidation", "paused_peer_busy"):
            stats.pop(name)
    assert after == before
    if not alone:
        traffic.do(load.finish)
        assert client.call("Stats")["retired_connections"] == 0


def test_a_scope_without_the_daemon_s_own_cgroup(host: Host, other_cgroup: Path) -> None:
    """What is left out of scope is not left out of the trial."""
    left_out = f"/{other_cgroup.relative_to(cgroup.mount_point())}"
    host.overrides["scope"] = {"exclude_cgroups": [left_out], "only_ports": [7]}
    daemon = host.start()
    (other_cgroup / "cgroup.procs").write_text(str(daemon.pid))
    client = host.client()
    client.call("Enable")
    assert client.get("Scope")["exclude_cgroups"] == [left_out]
    assert client.get("Kernel")["passed"] > 8
    host.actor().do(load.echo_once, 10, 64)  # not to port 7
    assert client.call("Stats")["accelerated_connections"] == 0


# what the unit makes of a host: a cgroup of its own in a cgroupfs that is read-only
CONFINE = 'echo $$ > "$1/cgroup.procs" && mount -o remount,bind,ro "$2" && shift 2 && exec "$@"'


def test_as_the_service(host: Host, other_cgroup: Path) -> None:
    """With the unit's capabilities: exec files of others are out of reach, and so are programs."""
    cgroupfs = str(cgroup.mount_point())
    confine = ["unshare", "--mount", "sh", "-c", CONFINE, "sh", str(other_cgroup), cgroupfs]
    host.start([*confine, *limited_to(bounding_set())])
    client = host.client()
    with textbook.attached(host.root.parent / "others", host.cgroup):
        found = {finding["name"]: finding for finding in client.call("Check")}
    assert "trial" not in found
    assert "fail" not in {finding["status"] for finding in found.values()}
    assert "sock_ops program" in found["other_programs"]["detail"]
    assert "not tried" not in found["firewall"]["detail"]
    client.call("Enable")
    assert client.get("Kernel")["passed"] == sum(
        finding["status"] == "pass" for name, finding in found.items() if name not in HOST_FACTS
    )


@pytest.mark.parametrize("seconds", [0.2, 0.5, 0.8, 1.1])
def test_nothing_stays_of_a_check_that_was_killed(host: Host, seconds: float) -> None:
    """Nothing is pinned, and no process is left that could hold anything."""
    daemon = host.start()
    host.client().begin("Check")
    daemon.kill_after(seconds)
    again = host.start()
    ours = cgroup.own() / sandbox._name(host.root)
    assert not ours.exists()
    assert pins.directories(host.root) == []
    eventually(lambda: not exercises(daemon.pid), "its children end")
    host.client().call("Check")
    assert not ours.exists()
    assert pins.directories(host.root) == []
    assert pins.held_by(again.pid) == set()
    assert exercises(again.pid) == []


@pytest.mark.parametrize("seconds", [0.2, 0.7])
def test_stopping_waits_for_a_check(host: Host, seconds: float) -> None:
    daemon = host.start()
    host.client().begin("Check")
    time.sleep(seconds)  # a moment that nothing announces
    assert daemon.stop() == 0
    assert pins.directories(host.root) == []
    assert not (cgroup.own() / sandbox._name(host.root)).exists()
    assert exercises(daemon.pid) == []


def exercises(daemon: int) -> list[str]:
    """Children that a daemon has started: its pid is their last argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"sockredird.check.exercise" in words or b"sockredird.loader.compiler" in words:
            found += [str(path)] if str(daemon).encode() in words else []
    return found


def test_the_sandbox_of_a_killed_daemon_is_used_again(host: Host) -> None:
    left = cgroup.own() / sandbox._name(host.root)
    left.mkdir()
    host.start()
    assert not left.exists()
    left.mkdir()
    assert "trial" not in {finding["name"] for finding in host.client().call("Check")}
    assert not left.exists()


def test_where_no_cgroup_can_be_made(host: Host) -> None:
    """Nothing is known against the kernel then: a warning, and Enable goes on."""
    blocked = cgroup.own() / sandbox._name(host.root)
    daemon = host.start()
    blocked.mkdir()
    (blocked / "deeper").mkdir()
    try:
        # the other programs in the daemon's own cgroup are those of the tests
        (host.cgroup / "cgroup.procs").write_text(str(daemon.pid))
        stranger = subprocess.Popen(["sleep", "60"])
        (host.cgroup / "cgroup.procs").write_text(str(stranger.pid))
        (host.cgroup / "cgroup.max.descendants").write_text("0")
        client = host.client()
        found = {finding["name"]: finding for finding in client.call("Check")}
        assert found["trial"]["status"] == "warn"
        assert "not tried" in found["trial"]["detail"]
        client.call("Enable")
        assert client.get("State") == "enabled"
    finally:
        (blocked / "deeper").rmdir()
        blocked.rmdir()
        (host.cgroup / "cgroup.max.descendants").write_text("max")
        stranger.kill()
        stranger.wait()


def test_the_summary_outlives_the_daemon(host: Host) -> None:
    daemon = host.start()
    client = host.client()
    assert client.get("Kernel") == {
        "release": os.uname().release,
        "passed": 0,
        "warned": 0,
        "noted": 0,
        "failed": 0,
        "checked": 0,
    }
    assert "not tried yet (sockredirctl check)" in host.ctl("status").stdout
    client.call("Enable")
    summary = client.get("Kernel")
    assert summary["checked"] > 0
    daemon.kill()
    host.start()
    assert client.get("Kernel") == summary
    (line,) = [ln for ln in host.ctl("status").stdout.splitlines() if "Kernel:" in ln]
    assert f"{summary['passed']} checks pass" in line
    assert (f"{summary['noted']} note" in line) == (summary["noted"] > 0)
    warned = summary["warned"] - summary["noted"]
    assert (f"{warned} warn (sockredirctl check)" in line) == (warned > 0)
    assert json.loads(host.ctl("status", "--json").stdout)["Kernel"] == summary


def test_the_command(host: Host, client: Client) -> None:
    done = host.ctl("check")
    assert (done.returncode, done.stderr) == (0, "")
    # what to type about a finding is on a line of its own below it
    lines = [ln.split(None, 2) for ln in done.stdout.splitlines() if not ln.startswith(" ")]
    shown = json.loads(host.ctl("check", "--json").stdout)
    words = [[check.word(finding), finding["name"]] for finding in shown]
    assert [line[1] for line in lines] == [name for _, name in words]
    # programs of others on this host, a test suite's for example, come and go between the two
    own = [word for word in words if word[1] != "other_programs"]
    assert [line[:2] for line in lines if line[1] != "other_programs"] == own
    for finding in shown:
        if finding["advice"] and finding["name"] != "other_programs":
            assert f"  {finding['advice']}" in done.stdout
    # how this kernel is: no warning of this host
    notes = {finding["name"] for finding in shown if finding["note"]}
    assert notes <= {"fentry", "splice", "fionread_redirected", "fionread_tcp"}
    status, stderr = main_as_nobody(
        sockredirctl.__main__.main, "check", DBUS_SYSTEM_BUS_ADDRESS=host.bus
    )
    assert (status, stderr) == (0, "")
