"""Controls that do not see redirected data are named, each of them made for real."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from sockredird.check import controls
from sockredird.check.findings import PASS, WARN, Finding
from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.uapi import AttachType
from support import namespaces
from support.daemon.actor import Actor
from support.processes import run
from support.traffic import Connection, connect, listen

CGROUP_SKB = 8  # enum bpf_prog_type
ALLOW = bytes([0xB7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])  # return 1

_held: list[Connection] = []


def _qdiscs() -> list[Finding]:
    namespaces.enter_network()
    found = [controls.qdiscs("lo")]
    for command in ("root pfifo", "clsact"):
        subprocess.run(["tc", "qdisc", "add", "dev", "lo", *command.split()], check=True)
        found.append(controls.qdiscs("lo"))
    return found


def test_queueing_disciplines() -> None:
    found = run(_qdiscs)
    assert [finding.status for finding in found] == [PASS, WARN, WARN]
    assert [finding.private for finding in found] == ["", "pfifo", "clsact; pfifo"]


def hold_connection() -> None:
    with listen() as listener:
        _held.append(connect(listener))


def attach(directory: Path, kind: AttachType) -> Fd:
    """A link that keeps a program attached which lets every packet through."""
    cgroup = Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
    with cgroup, libbpf.load_program(CGROUP_SKB, "allow", ALLOW, kind) as program:  # type: ignore[arg-type]
        return libbpf.create_cgroup_link(program, cgroup, kind)


def test_packet_programs(cgroup: Path) -> None:
    """On the cgroup of a connection, or above it; not on one without connections."""
    below = cgroup / "below.service"
    below.mkdir()
    try:
        for kind in (AttachType.CGROUP_INET_INGRESS, AttachType.CGROUP_INET_EGRESS):
            with attach(cgroup, kind):
                assert "below.service" not in controls.packet_programs().private
                with Actor(below) as program:
                    program.do(hold_connection)
                    finding = controls.packet_programs()
                    assert finding.status == WARN
                    assert "below.service" in finding.private.split("; ")
                    assert "below.service" not in finding.detail
        with Actor(below) as program:
            program.do(hold_connection)
            assert "below.service" not in controls.packet_programs().private
    finally:
        below.rmdir()
