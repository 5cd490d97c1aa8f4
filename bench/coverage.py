"""Which share of a workload's messages is redirected."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from bench.host import Host
from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.uapi import AttachType, ProgType
from support.bcc_child import pinned

SOURCE = Path(__file__).parent / "load" / "data_segments.bpf.c"
PROGRAMS = {"count": ("data_segments", int(ProgType.SOCK_OPS))}


def measure(host: Host, run: Callable[[], object]) -> float:
    """0 to 1, of one run over a datapath of sockredird whose connections begin and end in it.

    By TCP go as many messages as data segments. Nothing is to be timed meanwhile.
    """
    directory = host.pins("segments")
    with (
        pinned(SOURCE, directory, PROGRAMS, ["segments"]),
        libbpf.open_pin(directory / "count") as program,
        libbpf.open_pin(directory / "segments") as segments,
        Fd(os.open(host.ours.cgroup, os.O_RDONLY | os.O_DIRECTORY)) as cgroup,
        libbpf.create_cgroup_link(program, cgroup, AttachType.CGROUP_SOCK_OPS),
    ):
        before = host.redirected()
        run()
        redirected = host.redirected() - before
        by_tcp = int.from_bytes(libbpf.lookup(segments, bytes(4), 8), sys.byteorder)
    return redirected / (redirected + by_tcp) if redirected else 0.0
