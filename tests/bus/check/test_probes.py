"""Each probe is seen to say both: over our datapath, over wrong ones, and over none."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from dbus_next import DBusError

from bus.check.conftest import Edit
from sockredird.check import probes, sandbox
from sockredird.datapath.generation import Generation
from sockredird.datapath.members import Walked
from support import namespaces, textbook
from support.daemon import pins
from support.daemon.client import Client
from support.daemon.host import Host
from support.datapath import plan
from support.processes import run

FAIL, WARN, PASS = "fail", "warn", "pass"
KERNEL = {
    *("lockdown", "btf", "fentry", "programs", "links", "redirect", "iterator"),
    *("fionread_redirected", "splice", "order", "backpressure", "mptcp", "ktls", "unload"),
    "fionread_tcp",
}
HOST = {"listeners", "other_programs", "rps", "firewall", "qdiscs", "packet_programs"}


def statuses(client: Client) -> dict[str, str]:
    return {finding["name"]: finding["status"] for finding in client.call("Check")}


@dataclass
class Textbook:
    """The wrong datapath, as a subject."""

    directory: Path
    members_fd: int = -1
    detectors: frozenset[str] = frozenset()

    @contextmanager
    def attached(self, cgroup: Path, port: int) -> Iterator[None]:
        with textbook.attached(self.directory, cgroup) as self.members_fd:
            yield

    def members(self) -> Walked | None:
        return None

    def begin_unload(self) -> None:
        textbook.delete_members(self.members_fd)

    def finish_unload(self) -> bool:
        return True


class Nothing:
    """No datapath: sockets are TCP's."""

    detectors: frozenset[str] = frozenset()

    def attached(self, cgroup: Path, port: int) -> nullcontext[None]:
        return nullcontext()

    def members(self) -> Walked | None:
        return None

    def begin_unload(self) -> None: ...

    def finish_unload(self) -> bool:
        return True


def judge(root: Path, subject: probes.Subject) -> dict[str, str]:
    with sandbox.opened(root) as box:
        return {finding.name: finding.status for finding in probes.try_out(box, subject)}


def test_the_textbook(bpffs: Path) -> None:
    found = judge(bpffs, Textbook(bpffs / "textbook"))
    wrong = {name for name, status in found.items() if status == FAIL}
    assert {"order", "backpressure", "unload"} <= wrong
    assert found["splice"] == WARN


def test_no_datapath(bpffs: Path) -> None:
    found = judge(bpffs, Nothing())
    assert {name for name, status in found.items() if status == FAIL} == {"redirect"}
    assert {name for name, status in found.items() if status == WARN} == {"iterator"}


class Late(Nothing):
    """Nothing is attached until start() is called."""

    def __init__(self, candidate: probes.Candidate) -> None:
        self.candidate = candidate

    def attached(self, cgroup: Path, port: int) -> nullcontext[None]:
        self.start = partial(self.candidate.attached, cgroup, port)
        return nullcontext()


@pytest.mark.parametrize(("busy", "status"), [(4, PASS), (5, FAIL)])
def test_a_host_that_is_busy_for_a_moment(
    cgroup: Path, bpffs: Path, busy: int, status: str
) -> None:
    """So many connections are on TCP, and those after them redirected."""
    order, tried = sandbox.Sandbox.order, itertools.count()
    with (
        Generation.unpinned(bpffs / f"busy-{busy}", plan(cgroup)) as generation,
        sandbox.opened(bpffs) as box,
        ExitStack() as stack,
    ):
        late = Late(probes.Candidate(generation))

        def attaching(name: str, **more: Any) -> Any:
            if name == "send_both_ways" and next(tried) == busy:
                stack.enter_context(late.start())
            return order(box, name, **more)

        with mock.patch.object(box, "order", attaching):
            found = {f.name: (f.status, f.detail) for f in probes.try_out(box, late)}
    assert found["redirect"][0] == status, found["redirect"]


def _behind_a_firewall(root: Path) -> str:
    namespaces.enter_network()
    subprocess.run(["iptables", "-A", "INPUT", "-i", "lo", "-j", "DROP"], check=True)
    with pytest.raises(sandbox.Unavailable) as caught:
        judge(root, Nothing())
    return str(caught.value)


def test_where_nothing_connects(bpffs: Path) -> None:
    """A trial without connections shows nothing about the kernel."""
    assert "no connection to" in run(_behind_a_firewall, bpffs)


def test_ours(host: Host) -> None:
    daemon = host.start()
    client = host.client()
    found = statuses(client)
    assert found.keys() == KERNEL | HOST
    assert FAIL not in found.values()
    assert client.call("Stats")["accelerated_connections"] == 0
    # what is neither pinned nor open is gone
    assert pins.directories(host.root) == []
    assert pins.held_by(daemon.pid) == set()


ORDER: list[Edit] = [
    ("bpf/pair/pair.c", "return (segment_has_data(skops) ||", "return 0 && ("),
    ("bpf/carry/begin.h", "|| copied != own_write_seq(tp) ||", "||"),
]  # fmt: skip
_ASK = 'pair.client.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")'
BROKEN: dict[str, tuple[str, str, list[Edit]]] = {
    "no redirect": (
        "redirect",
        FAIL,
        [
            (
                "bpf/carry/redirect.c",
                "verdict = peers.msg_redirect_hash(msg, &peer, BPF_F_INGRESS);",
                "verdict = SK_DROP;",
            )
        ],
    ),
    "no listing": (
        "iterator",
        FAIL,
        [("bpf/leave/walk.c", "w->staying++;", "")],
    ),
    "early data accelerated": ("order", FAIL, ORDER),
    "bytes unbounded": (
        "backpressure",
        FAIL,
        [("bpf/carry/bounds.h", "if (unread >= window || unread + size > limit)", "if (0)"),
         ("bpf/carry/bounds.h", "if (messages >= most_messages(st, unread))", "if (0)")],
    ),
    "messages unbounded": (
        "backpressure",
        FAIL,
        [("bpf/carry/bounds.h", "if (messages >= most_messages(st, unread))", "if (0)")],
    ),
    "unread data purged": (
        "unload",
        FAIL,
        [("bpf/leave/walk.c", "if (!none_in_flight(sk, sender, st))\n\t\treturn 0;", ""),
         ("bpf/leave/walk.c", "return psock_queue_empty(psock);", "return 1;"),
         ("check/probes.py", "        self.generation.stop()\n",
          "        self.generation.stop()\n        self.finish_unload()\n")],
    ),
    "never off the sockhash": (
        "unload",
        FAIL,
        [("bpf/leave/walk.c", "return psock_queue_empty(psock);", "return 0;")],
    ),
    "wrong offset": (
        "unload",
        FAIL,
        [("loader/offsets.py", '("sk_psock", "ingress_msg"),', '("sk_psock", "refcnt"),'),
         ("loader/offsets.py", "    return flags",
          "    return [*flags, '-DOFF_sk_psock_ingress_msg=8']")],
    ),
    "unknown helper": (
        "programs",
        FAIL,
        [("bpf/pair/pair.c", "\tswitch (skops->op) {\n\tcase BPF_SOCK_OPS_RWND_INIT:\n",
          "\t((long (*)(void))9999)();\n"
          "\tswitch (skops->op) {\n\tcase BPF_SOCK_OPS_RWND_INIT:\n")],
    ),
    "missing field": (
        "btf",
        FAIL,
        [("loader/offsets.py", '    ("sock", "sk_shutdown"),', '    ("sock", "sk_shutdown"),\n'
          '    ("sock", "sk_nothing"),')],
    ),
    "locked down": (
        "lockdown",
        FAIL,
        [("check/kernel_facts.py", "def lockdown(path: Path = LOCKDOWN) -> str:",
          "def lockdown(path: Path = LOCKDOWN) -> str:\n    return 'confidentiality'\n\n\n"
          "def _lockdown(path: Path = LOCKDOWN) -> str:")],
    ),
    "MPTCP accelerated": (
        "mptcp",
        FAIL,
        [("check/exercise.py", "IPPROTO_MPTCP = 262", "IPPROTO_MPTCP = 0")],
    ),
    "kTLS breaks it": (
        "ktls",
        WARN,
        [("check/exercise.py", 'if "tls" not in', 'if "tls" in'),
         ("check/exercise.py", _ASK, "pair.client.shutdown(socket.SHUT_WR)")],
    ),
    "kTLS refused": (
        "ktls",
        PASS,
        [("check/exercise.py", 'if "tls" not in', 'if "tls" in')],
    ),
    "FIONREAD of nothing": (
        "fionread_redirected",
        WARN,
        [("check/exercise.py", "waiting = fionread(pair.server)",
          "waiting = fionread(pair.client)")],
    ),
    # an iterator's function can be watched everywhere
    "fentry works": (
        "fentry",
        PASS,
        [("check/kernel_facts.py", "tcp_splice_read", "bpf_iter_task"),
         ("check/kernel_facts.py", "TRACE_FENTRY", "TRACE_ITER")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_property(
    host: Host, edited: Callable[[list[Edit]], dict[str, str]], name: str
) -> None:
    probe, status, edits = BROKEN[name]
    host.start(**edited(edits))
    client = host.client()
    found = statuses(client)
    assert found[probe] == status, found
    if status == FAIL:
        refuses(host, client, probe)


def refuses(host: Host, client: Client, probe: str) -> None:
    """Enable names the probe, and changes nothing."""
    with pytest.raises(DBusError) as caught:
        client.call("Enable")
    error = "LoadFailed" if probe == "programs" else "UnsupportedKernel"
    assert caught.value.type == f"org.sockredir.Error.{error}"
    if probe not in ("programs", "btf", "lockdown"):  # these name the helper, the field, the mode
        assert f"'{probe}'" in caught.value.text
    assert client.get("State") == "disabled"
    assert pins.directories(host.root) == []
    assert not host.state.exists() or not list(host.state.iterdir())


def test_an_upgrade_that_fails_its_trial(
    host: Host, edited: Callable[[list[Edit]], dict[str, str]]
) -> None:
    """What was there before goes on, and the command says why."""
    daemon = host.start()
    client = host.client()
    client.call("Enable")
    daemon.stop()
    before = pins.ids(host.root)
    host.start(**edited(BROKEN["no redirect"][2]))
    assert client.get("State") == "enabled"
    assert "'redirect'" in client.get("Problem")
    assert pins.ids(host.root) == before
    assert client.get("Kernel")["failed"] == 1
    done = host.ctl("check")
    assert done.returncode == 1
    expected = "this kernel is not fit for acceleration: it fails redirect"
    assert done.stderr == f"sockredirctl: {expected}\n"
