"""What on this host conflicts with redirected data: programs, settings, firewall rules.

This module only looks, and its looking loads no kernel module.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from ctypes import byref, c_uint32
from pathlib import Path

from sockredird.check import controls, splicers
from sockredird.check.findings import PASS, WARN, Finding, some
from sockredird.datapath.generation import Generation
from sockredird.kernel import libbpf
from sockredird.kernel.cgroup import mount_point
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.libbpf_prototypes import lib
from sockredird.kernel.uapi import AttachType, ProgType

RULES_LIMIT_S = 2.0
_SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = {int(ProgType.SOCK_OPS): "sock_ops", int(ProgType.SK_MSG): "sk_msg"}
_LOOKS_INSIDE = re.compile(
    r"-m (string|u32|bpf|quota|connbytes)\b|-j (NFQUEUE|NFLOG|TEE)\b"  # iptables-save
    r"|@(nh|th|ih),|\bct (\w+ )?(bytes|packets|avgpkt)\b|\b(quota|queue|dup)\b"  # nft
)
_INTERFACE = re.compile(r'(!\s+)?(?:-[io]|[io]ifname|[io]if)\s+(!=\s+)?"?([^\s"]+)')


def gather(candidate: Generation | None, ours: frozenset[int] = frozenset()) -> list[Finding]:
    """`candidate` is a generation that is not live; `ours` are the ids of sockredird's programs."""
    return [
        _listeners(candidate),
        _other_programs(ours),
        receive_steering(Path("/sys/class/net/lo")),
        _firewall(),
        controls.qdiscs("lo"),
        controls.packet_programs(),
    ]


# -- programs --------------------------------------------------------------------------------


def _listeners(candidate: Generation | None) -> Finding:
    if candidate is None:
        return Finding("listeners", WARN, "not tried: only a datapath sees which programs listen")
    found, unknown = splicers.find(candidate)
    rest = f"; {_count(unknown, 'program')} could not be examined" if unknown else ""
    names = [f"{process.comm}[{process.pid}]" for process in unknown]
    unseen = f"not examined: {some(names)}" if names else ""
    if not found:
        detail = f"no listening program is known to use splice(2){rest}"
        return Finding("listeners", PASS, detail, unseen)
    return Finding(
        "listeners",
        WARN,
        f"{_count(found, 'listening program')} may use splice(2), which accelerated connections do "
        f"not support: leave those that are proxies out of scope{rest}",
        "; ".join(filter(None, [some(list(map(str, found))), unseen])),
        _leave_out(found),
    )


def _count(items: Sequence[object], what: str) -> str:
    return f"{len(items)} {what}{'s' if len(items) > 1 else ''}"


def _leave_out(found: list[splicers.Splicer]) -> str:
    """By unit, or else by port: in the file, as an option would replace those given before."""
    units = sorted({unit for one in found if (unit := splicers.unit(one.process))})
    rest = [one for one in found if not splicers.unit(one.process)]
    ports = sorted({port for one in rest for port in one.ports})
    keys = [f"exclude_units = {json.dumps(units)}"] if units else []
    keys += [f"exclude_ports with {', '.join(map(str, ports))} added"] if ports else []
    return f"in [scope] of sockredird.toml: {', '.join(keys)}; then sockredirctl reload"


def _other_programs(ours: frozenset[int]) -> Finding:
    try:
        others = [text for number, text in _all_programs() if number not in ours]
        unseen = ""
    except PermissionError:  # it takes CAP_SYS_ADMIN, which the service does not have
        others = [f"sock_ops program {n}" for n in sorted(set(_on_cgroups()) - ours)]
        unseen = " on cgroups; sk_msg programs cannot be seen with the daemon's privileges"
    if not others:
        return Finding("other_programs", PASS, f"no other sock_ops or sk_msg programs{unseen}")
    return Finding(
        "other_programs",
        WARN,
        f"other sock_ops or sk_msg programs: {len(others)}{unseen}; a socket that one of them puts "
        "on its own sockmap first stays on TCP",
        some(others),
        "bpftool cgroup tree; bpftool prog show",
    )


def _all_programs() -> Iterator[tuple[int, str]]:
    """Ids and descriptions of all programs of the two types that ours have."""
    number = c_uint32(0)
    while True:
        result = lib.bpf_prog_get_next_id(number, byref(number))
        if result == -errno.ENOENT:
            return
        libbpf.check(result, "list programs")
        fd = lib.bpf_prog_get_fd_by_id(number)
        if fd < 0:
            continue  # it was freed meanwhile
        with Fd(fd) as program:
            info = libbpf.prog_info(program)
        if info.type in _PROGRAMS:
            yield info.id, f"{_PROGRAMS[info.type]} {info.name.decode()!r} (id {info.id})"


def _on_cgroups() -> Iterator[int]:
    for directory, _, _ in os.walk(mount_point()):
        try:
            with Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY)) as cgroup:
                yield from libbpf.attached_to_cgroup(cgroup, AttachType.CGROUP_SOCK_OPS)
        except FileNotFoundError:  # it was removed meanwhile
            continue


# -- settings and rules ----------------------------------------------------------------------


def receive_steering(interface: Path) -> Finding:
    """Whether RPS is on for an interface, given by its directory in sysfs."""
    masks = [path.read_text() for path in interface.glob("queues/rx-*/rps_cpus")]
    if not any(set(mask.strip()) - set("0,") for mask in masks):
        return Finding("rps", PASS, "lo has no Receive Packet Steering")
    return Finding(
        "rps",
        WARN,
        "Receive Packet Steering is on for lo: first messages may overtake handshakes, and then "
        "their connections stay on TCP (early_data)",
        advice="for f in /sys/class/net/lo/queues/rx-*/rps_cpus; do echo 0 > $f; done",
    )


def _firewall() -> Finding:
    rules: list[str] = []
    try:
        for command in _commands():
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=RULES_LIMIT_S,
                check=True,
            )
            rules += filter(looks_inside, done.stdout.splitlines())
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("firewall", WARN, "not tried: the rules cannot be listed", str(error))
    if not rules:
        return Finding("firewall", PASS, "no firewall rule inspects what connections on lo carry")
    return Finding(
        "firewall",
        WARN,
        f"firewall rules that inspect what connections on lo carry: {len(rules)}; of accelerated "
        "ones they see the handshake, the end, and a message now and then",
        some([rule.strip() for rule in dict.fromkeys(rules)]),
    )


def looks_inside(rule: str) -> bool:
    """Whether a line of iptables-save or nft can match packets on lo by more than their headers."""
    interfaces = _INTERFACE.findall(rule)
    elsewhere = any((name == "lo") == bool(a or b) for a, b, name in interfaces)
    return bool(_LOOKS_INSIDE.search(rule)) and not elsewhere


def _commands() -> Iterator[list[str]]:
    """The commands that list rules, without those that would load a module to do so."""
    names = []
    if _has_nf_tables():
        # iptables-save shows the names of matches, where nft only shows xt
        names += ["iptables-nft-save", "ip6tables-nft-save", "nft"]
    for table, name in (("ip", "iptables-legacy-save"), ("ip6", "ip6tables-legacy-save")):
        path = Path(f"/proc/net/{table}_tables_names")
        if path.exists() and path.read_text():
            names.append(name)
    for name in names:
        program = shutil.which(name, path=_SBIN)
        if program:
            yield [program, "list", "ruleset"] if name == "nft" else [program]


def _has_nf_tables() -> bool:
    loaded = Path("/proc/modules")
    if not loaded.exists():
        return True  # a kernel without modules loads none
    if re.search(r"^nf_tables ", loaded.read_text(), re.MULTILINE):
        return True
    builtin = Path(f"/lib/modules/{os.uname().release}/modules.builtin")
    try:
        return "/nf_tables.ko" in builtin.read_text()
    except OSError:
        return False
