"""What the daemon itself takes: memory, and the time of its calls, as a user waits for them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.accelerator import Accelerator
from bench.datapaths import OURS
from bench.host import Host
from bench.loads import Loads
from bench.spread import spread
from support.checkout import REPOSITORY
from support.daemon.process import PYTHON, environment

RUNS = 9


def measure(host: Host, loads: Loads, *, quick: bool) -> dict[str, Any]:
    """Ends the host's daemon and starts others in its place; the last one is left running."""
    ours = host.ours
    runs = 3 if quick else RUNS
    names = ("restart", "first", "enable", "disable", "stats", "memory")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(runs):
        found["restart"].append(_seconds(ours.restart))
    for _ in range(runs):
        found["stats"].append(_seconds(lambda: _ctl(ours, "stats")))
    for _ in range(runs):
        found["disable"].append(_seconds(lambda: ours.call("Disable")))
        ours.restart()
        shutil.rmtree(ours.cache)
        found["first"].append(_seconds(lambda: ours.call("Enable")))
        ours.call("Disable")
        ours.restart()
        found["enable"].append(_seconds(lambda: ours.call("Enable")))
        loads.rr(host.datapaths[OURS], size=64)
        ours.call("Stats")
        found["memory"].append(_resident_mib(ours.process.pid))
    figures = (
        ("memory", "resident memory after Enable", "MiB", 35.0),
        ("restart", "SIGKILL to READY, adopting the datapath", "s", 0.3),
        ("first", "first Enable on a kernel, which compiles", "s", 0.6),
        ("enable", "cold Enable, compiled before", "s", 0.6),
        ("disable", "Disable, no connections", "s", 0.1),
        ("stats", "sockredirctl stats", "s", 0.25),
    )
    return {
        name: {
            "title": title,
            "unit": unit,
            "target": target,
            "figure": asdict(spread(found[name])),
        }
        for name, title, unit, target in figures
    }


def _seconds(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def _ctl(ours: Accelerator, command: str) -> None:
    subprocess.run(
        [PYTHON, "-m", "sockredirctl", command],
        env=environment(ours.bus),
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/{pid}/status has no VmRSS")
