"""What the programs themselves take: nanoseconds per run, by the kernel's own count.

BPF_ENABLE_STATS makes the kernel time every run of every program. What it adds to each run (two
reads of the clock) it adds to ours and to the textbook's alike.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.datapaths import OURS, TEXTBOOK
from bench.host import Host
from bench.loads import FEW_CONNECTIONS, Loads
from bench.spread import spread
from bench.workload import SAME_CORE

ROUNDS = 5
_RUN_TIME = 0  # enum bpf_stats_type
_PROGRAMS = {OURS: ("pair", "redirect"), TEXTBOOK: ("sockops", "msg")}


@dataclass(frozen=True)
class Runs:
    ns: int
    count: int

    def __sub__(self, before: Runs) -> Runs:
        return Runs(self.ns - before.ns, self.count - before.count)


@contextmanager
def _timed() -> Iterator[None]:
    fd = ctypes.CDLL("libbpf.so.1").bpf_enable_stats(_RUN_TIME)
    if fd < 0:
        raise OSError("BPF_ENABLE_STATS: refused")
    try:
        yield
    finally:
        os.close(fd)


def _runs(pin: Path) -> Runs:
    command = ["bpftool", "--json", "prog", "show", "pinned", str(pin)]
    shown = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return Runs(shown.get("run_time_ns", 0), shown.get("run_cnt", 0))


def measure(host: Host, loads: Loads) -> dict[str, Any]:
    """Per datapath: ns and runs of its two programs per message, and per connection."""
    (generation,) = host.ours.bpffs.glob("generation-*")
    places = {OURS: generation, TEXTBOOK: host.pins(TEXTBOOK)}
    result: dict[str, Any] = {}
    with _timed():
        for name, (sockops, msg) in _PROGRAMS.items():
            path = host.datapaths[name]
            message = _per_run(places[name] / msg, partial(loads.rr, path, size=64, cpus=SAME_CORE))
            per_connection = []
            for _ in range(ROUNDS):
                before = _runs(places[name] / sockops)
                sample = loads.crr(path, warm_up=FEW_CONNECTIONS)
                after = _runs(places[name] / sockops) - before
                per_connection.append((after.ns, after.count, sample.more["connections"]))
            result[name] = {
                "message_ns": message,
                "connection_ns": spread([ns / n for ns, _, n in per_connection]).median,
                "callbacks": spread([runs / n for _, runs, n in per_connection]).median,
            }
    return result


def _per_run(pin: Path, work: Callable[[], object]) -> float:
    values = []
    for _ in range(ROUNDS):
        before = _runs(pin)
        work()
        after = _runs(pin) - before
        values.append(after.ns / after.count)
    return spread(values).median
