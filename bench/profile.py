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

from bench.datapaths import OURS, TEXTBOOK, of_base
from bench.host import Host
from bench.loads import FEW_CONNECTIONS, Loads
from bench.spread import spread
from bench.workload import SAME_CORE

ROUNDS = 5
_RUN_TIME = 0  # enum bpf_stats_type


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


def _shown(pin: Path) -> Any:
    command = ["bpftool", "--json", "prog", "show", "pinned", str(pin)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def _runs(pin: Path) -> Runs:
    shown = _shown(pin)
    return Runs(shown.get("run_time_ns", 0), shown.get("run_cnt", 0))


def _instructions(pin: Path) -> int:
    """As the verifier leaves them."""
    return int(_shown(pin)["bytes_xlated"]) // 8


def _pins(host: Host) -> dict[str, tuple[Path, Path]]:
    """Of the sock_ops and the sk_msg program, by datapath."""
    directory = host.pins(TEXTBOOK)
    found = {TEXTBOOK: (directory / "sockops", directory / "msg")}
    for name, accelerator in zip((OURS, of_base(OURS)), host.accelerators, strict=False):
        (generation,) = accelerator.bpffs.glob("generation-*")
        found[name] = (generation / "pair", generation / "redirect")
    return found


def measure(host: Host, loads: Loads) -> dict[str, Any]:
    """Per datapath, of its two programs: ns and runs per message and per connection, and sizes."""
    result: dict[str, Any] = {}
    with _timed():
        for name, (sockops, msg) in sorted(_pins(host).items()):
            path = host.datapaths[name]
            message = _per_run(msg, partial(loads.rr, path, size=64, cpus=SAME_CORE))
            per_connection = []
            for _ in range(ROUNDS):
                before = _runs(sockops)
                sample = loads.crr(path, warm_up=FEW_CONNECTIONS)
                after = _runs(sockops) - before
                per_connection.append((after.ns, after.count, sample.more["connections"]))
            result[name] = {
                "message_ns": message,
                "connection_ns": spread([ns / n for ns, _, n in per_connection]).median,
                "message_instructions": _instructions(msg),
                "connection_instructions": _instructions(sockops),
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
