"""What is put into a generation's maps: from its plan, and as the host changes."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Set
from pathlib import Path
from typing import Any

from sockredird.datapath import detectors, excluded_cgroups, visits
from sockredird.datapath.adoption import MAPS
from sockredird.datapath.plan import Plan
from sockredird.errors import LoadFailed, UnsupportedKernel
from sockredird.kernel import addresses, libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.loader import offsets
from sockredird.loader.header import record
from sockredird.loader.records import ADDRESSES, Settings
from sockredird.loader.shapes import CAPACITIES, PROGRAMS

_ZERO = bytes(4)
RECENT_S = 3.0  # a live connection that may join has carried data within this time
_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h


def fill(staging: Path, plan: Plan) -> None:
    """Does everything between loading and attaching.

    Raises InvalidConfig or UnsupportedKernel for excluded cgroups, LoadFailed, or OSError.
    """
    pins = {name: libbpf.open_pin(staging / name) for name in {*PROGRAMS, *MAPS}}
    # sk_msg before sock_ops: a socket copies the sockhash's program when it is inserted
    libbpf.attach_sk_msg(pins["redirect"], pins["peers"])
    visits.link(pins["walk"], pins["peers"], staging)
    excluded = excluded_cgroups.steps(plan.exclude_cgroups)
    if excluded and not offsets.can_exclude_cgroups():
        raise UnsupportedKernel(
            "exclude_cgroups needs the fields level and ancestors of the kernel's struct cgroup, "
            "which this kernel lacks: use exclude_ports instead"
        )
    for step, leads_to in excluded.items():
        libbpf.update(pins["excluded"], step, leads_to.to_bytes(4, sys.byteorder))
    attached = detectors.attach(staging)
    settings = Settings(
        stopped=1,
        window_bytes=plan.window_bytes,
        addresses=ADDRESSES.index(plan.addresses),
        excludes=len(plan.exclude_cgroups),
        seed=int.from_bytes(os.urandom(8), "little"),
        learn=int(plan.learn),
        blocking=int(plan.blocking_readers == "accelerate"),
        recent=round(RECENT_S * hz()),
        revalidate=max(1, round(plan.revalidate_s * hz())),
        memory_bytes=plan.memory,
        answers_fionread=int(detectors.FIONREAD in attached),
        begin_late=int(attached.keys() >= detectors.LATE),
    )
    libbpf.update(pins["settings"], _ZERO, settings.pack())
    write_own_addresses(pins["own_addresses"])
    libbpf.update(pins["ports"], _ZERO, port_bits(plan.ports))
    manifest = {
        **plan.manifest(),
        "created": time.time_ns() // 1000,
        "cgroups": {},
        "tags": {name: libbpf.prog_tag(pins[name]) for name in PROGRAMS},
        "detectors": attached,
    }
    write_manifest(pins["manifest"], manifest)
    for fd in pins.values():
        fd.close()


def hz() -> int:
    """Jiffies per second, from the resolution of the coarse clocks: see clock_getres(2)."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def port_bits(ports: Set[int]) -> bytes:
    """The ports as a struct ports."""
    bits = bytearray(record("ports").size)
    for port in ports:
        bits[port // 8] |= 1 << port % 8
    return bytes(bits)


def write_own_addresses(fd: Fd) -> None:
    """Makes the map hold the addresses of the daemon's network namespace, and no others."""
    address = record("address")
    there = set(libbpf.keys(fd, address.size))
    # as many as the map holds; connections between others count as those to another host
    netns = addresses.netns_cookie()
    own = {
        address.pack(ip=struct.unpack("=4I", ip), netns=netns)
        for ip in sorted(addresses.own())[: CAPACITIES["OWN_ADDRESSES"]]
    }
    for key in there - own:
        libbpf.delete(fd, key)
    for key in own - there:
        libbpf.update(fd, key, bytes(4))


def write_manifest(fd: Fd, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest).encode()
    room = record("manifest").size
    if len(text) >= room:
        raise LoadFailed(
            f"the scope is too long to be saved: {len(text)} bytes, and {room} is too many: "
            "name fewer units, cgroups or ports"
        )
    libbpf.update(fd, _ZERO, text.ljust(room, b"\0"))
