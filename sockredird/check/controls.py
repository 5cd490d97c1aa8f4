"""Controls on this host that see less of a connection once its data is redirected.

Redirected data passes neither IP nor the device lo: see SECURITY.md, "Controls".
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sockredird.check.findings import PASS, WARN, Finding, some
from sockredird.errors import SockredirError
from sockredird.kernel import libbpf, sockdiag
from sockredird.kernel.cgroup import Names, cgroup_id, mount_point, own
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.netlink import attributes, dump
from sockredird.kernel.uapi import AttachType

# include/uapi/linux/rtnetlink.h
_RTM_GETQDISC = 38
_TCMSG = struct.Struct("=BxxxiIII")
_TCA_KIND = 1


def qdiscs(interface: str) -> Finding:
    """Of an interface that redirected data would have passed: lo."""
    try:
        kinds = sorted(_kinds(socket.if_nametoindex(interface)) - {"noqueue"})
    except OSError as error:
        return Finding("qdiscs", WARN, f"not tried: tc cannot be asked about lo: {error}")
    if not kinds:
        return Finding("qdiscs", PASS, f"{interface} has no queueing discipline")
    return Finding(
        "qdiscs",
        WARN,
        f"{interface} has queueing disciplines: redirected data bypasses them, so it is neither "
        "shaped nor delayed, and their filters do not see it",
        some(kinds),
    )


def _kinds(index: int) -> set[str]:
    request = _TCMSG.pack(socket.AF_UNSPEC, index, 0, 0, 0)
    found = set()
    for message in dump(socket.NETLINK_ROUTE, _RTM_GETQDISC, request, "queueing disciplines"):
        if _TCMSG.unpack_from(message)[1] == index:  # the kernel dumps those of all interfaces
            kind = attributes(message[_TCMSG.size :]).get(_TCA_KIND, b"")
            found.add(kind.rstrip(b"\0").decode(errors="backslashreplace"))
    return found


def packet_programs() -> Finding:
    """Units with TCP sockets whose packets a BPF program filters or counts."""
    try:
        numbers = {found.cgroup for found in sockdiag.look().sockets} - {0}
        with suppress(SockredirError):
            numbers.discard(cgroup_id(own()))
        units = _with_programs(numbers)
    except (OSError, SockredirError) as error:
        return Finding("packet_programs", WARN, f"not tried: {error}")
    if not units:
        return Finding(
            "packet_programs", PASS, "no unit with TCP sockets filters or counts packets"
        )
    return Finding(
        "packet_programs",
        WARN,
        f"units with TCP sockets that filter or count packets (IPAddressDeny=, IPAccounting=): "
        f"{len(units)}; they do not see redirected data: leave these units out of scope",
        some(units),
    )


def _with_programs(numbers: Iterable[int]) -> list[str]:
    """Those of the cgroups that programs apply to, be they attached to one above."""
    names = Names()
    found = set()
    for path in filter(None, map(names.path, numbers)):
        with suppress(FileNotFoundError):  # removed meanwhile
            directory = mount_point() / path.lstrip("/")
            with Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as cgroup:
                kinds = (AttachType.CGROUP_INET_INGRESS, AttachType.CGROUP_INET_EGRESS)
                if any(libbpf.effective_on_cgroup(cgroup, kind) for kind in kinds):
                    found.add(Path(path).name or "/")
    return sorted(found)
