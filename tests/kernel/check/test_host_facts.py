"""What the host says: each fact produced for real."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockredird.check import host_facts, splicers
from sockredird.check.findings import PASS, WARN, Finding
from sockredird.check.splicers import likely
from sockredird.datapath.generation import Generation
from sockredird.kernel import libbpf
from sockredird.observe.owners import Process
from support import namespaces, textbook
from support.datapath import plan
from support.processes import run

LISTENER = (
    "import socket, sys\n"
    "with socket.create_server(('127.0.0.1', 0)) as s:\n"
    "    print(s.getsockname()[1], flush=True)\n"
    "    sys.stdin.read()\n"
)


def with_section(program: Path, name: bytes) -> bytes:
    """An ELF file with one more section, as a linker would have made it."""
    raw = bytearray(program.read_bytes())
    (shoff,) = struct.unpack_from("=Q", raw, 40)
    size, count, names_at = struct.unpack_from("=3H", raw, 58)
    table = bytearray(raw[shoff : shoff + size * count])
    at, length = struct.unpack_from("=QQ", table, size * names_at + 24)
    names = bytes(raw[at : at + length])
    struct.pack_into("=QQ", table, size * names_at + 24, len(raw), len(names) + len(name) + 1)
    raw += names + name + b"\0"
    table += struct.pack("=II", len(names), 1).ljust(size, b"\0")
    struct.pack_into("=Q", raw, 40, len(raw))
    struct.pack_into("=H", raw, 60, count + 1)
    return bytes(raw + table)


@contextmanager
def listening(program: Path, *arguments: str) -> Iterator[tuple[int, int]]:
    """Pid and port of a Python interpreter that listens."""
    with subprocess.Popen(
        [program, "-c", LISTENER, *arguments],
        env={**os.environ, "PYTHONHOME": sys.base_prefix},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        yield child.pid, int(child.stdout.readline())
        child.kill()


@pytest.fixture
def go_program(tmp_path: Path) -> Path:
    path = tmp_path / "traefik"
    path.write_bytes(with_section(Path(sys.executable).resolve(), b".go.buildinfo"))
    path.chmod(0o755)
    return path


def named(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    shutil.copy(Path(sys.executable).resolve(), path)
    return path


@pytest.fixture
def candidate(bpffs: Path, cgroup: Path) -> Iterator[Generation]:
    with Generation.unpinned(bpffs / "facts", plan(cgroup)) as generation:
        yield generation
    (bpffs / "facts").rmdir()


def test_listeners(candidate: Generation, go_program: Path, tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("defaults\n  option splice-auto\n")
    with (
        listening(go_program) as (go, go_port),
        listening(named(tmp_path, "docker-proxy")) as (docker, docker_port),
        listening(named(tmp_path, "haproxy"), "-f", str(config)) as (haproxy, haproxy_port),
        listening(Path(sys.executable)) as (plain, _),
    ):
        found = {s.process.pid: s for s in splicers.find(candidate)[0]}
        assert found.keys() >= {go, docker, haproxy}
        assert plain not in found
        assert "Go" in found[go].what
        assert "option splice" in found[haproxy].what
        ports = {pid: found[pid].ports for pid in (go, docker, haproxy)}
        assert ports == {go: (go_port,), docker: (docker_port,), haproxy: (haproxy_port,)}
        (finding,) = [f for f in host_facts.gather(candidate) if f.name == "listeners"]
        assert finding.status == WARN
        config.write_text("defaults\n  mode tcp\n")
        assert likely(Process(haproxy, "haproxy")) == ""
    assert "traefik" not in finding.told(everything=False)["detail"]
    assert "[" not in finding.told(everything=False)["detail"]
    again = {s.process.pid for s in splicers.find(candidate)[0]}
    assert not again & {go, docker, haproxy}


def test_other_programs(candidate: Generation, bpffs: Path, cgroup: Path) -> None:
    ours = candidate.program_ids()
    directory = bpffs / "other"
    with textbook.attached(directory, cgroup):
        sock_ops, sk_msg = (program_id(directory / name) for name in ("sockops", "msg"))
        listed = dict(host_facts._all_programs())
        assert listed[sock_ops] == f"sock_ops 'textbook_sockop' (id {sock_ops})"
        assert listed[sk_msg] == f"sk_msg 'textbook_msg' (id {sk_msg})"
        assert ours & listed.keys()
        # as the service has to, without CAP_SYS_ADMIN
        assert sock_ops in host_facts._on_cgroups()
        finding = host_facts._other_programs(ours)
        assert finding.status == WARN
        assert "(id" in finding.private
        assert "(id" not in finding.detail
    assert sock_ops not in host_facts._on_cgroups()
    assert host_facts._other_programs(AnyNumber()).status == PASS


class AnyNumber(frozenset[int]):
    """Whatever runs on this machine besides, it is ours."""

    def __contains__(self, number: object) -> bool:
        return True


def program_id(pin: Path) -> int:
    with libbpf.open_pin(pin) as fd:
        return int(libbpf.prog_info(fd).id)


def _steering(enter: Callable[[], None]) -> str:
    enter()
    return host_facts.receive_steering(Path("/sys/class/net/lo")).status


def test_receive_packet_steering() -> None:
    assert run(_steering, namespaces.enter_network) == PASS
    assert run(_steering, namespaces.enter_network_with_rps) == WARN


def _firewall(*rules: str) -> list[Finding]:
    namespaces.enter_network()
    found = [host_facts._firewall()]
    for rule in rules:
        subprocess.run(["iptables", *rule.split()], check=True)
        found.append(host_facts._firewall())
    return found


def test_firewall() -> None:
    found = run(
        _firewall,
        "-A INPUT -i lo -p tcp --dport 80 -j DROP",
        "-A INPUT -i eth0 -m string --algo bm --string secret -j DROP",
        "-A OUTPUT ! -o lo -m string --algo bm --string secret -j DROP",
        "-A INPUT -i lo -m string --algo bm --string secret -j DROP",
        "-A OUTPUT -p tcp -j NFQUEUE",
    )
    assert [finding.status for finding in found] == [PASS, PASS, PASS, PASS, WARN, WARN]
    assert "secret" in found[4].private
    assert "secret" not in found[4].detail
    assert "NFQUEUE" in found[5].private
