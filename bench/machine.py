"""What a figure is worth nothing without: the machine, the kernel, the date, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support.daemon.process import PYTHON

REPOSITORY = Path(__file__).parents[1]
_VERSIONS = {
    "redis": ["redis-server", "--version"],
    "PostgreSQL": ["pgbench", "--version"],
    "nginx": ["nginx", "-v"],
    "Apache": ["apache2", "-v"],
    "wrk": ["wrk", "-v"],
    "memcached": ["memcached", "--version"],
    "sockperf": ["sockperf", "--version"],
    "iperf3": ["iperf3", "--version"],
    "HAProxy": ["haproxy", "-v"],
    "pgbouncer": ["pgbouncer", "--version"],
    "gRPC": [PYTHON, "-c", "import grpc; print(grpc.__version__)"],
}


def describe(base: Path | None) -> dict[str, Any]:
    """`base`: the checkout that sockredird is compared with."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(REPOSITORY),
        **({"base": _commit(base)} if base else {}),
        "kernel": platform.release(),
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory_mib": int(_field("/proc/meminfo", "MemTotal").split()[0]) >> 10,
        "virtual": _output("systemd-detect-virt", "--vm") or "unknown",
        "distribution": _distribution(),
        "load": os.getloadavg()[0],
        "versions": {name: _version(command) for name, command in _VERSIONS.items()},
    }


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return ""
    return (done.stdout + done.stderr).strip()


def _commit(checkout: Path) -> str:
    command = ["git", "-c", f"safe.directory={checkout}", "-C", str(checkout)]
    return _output(*command, "describe", "--always", "--dirty")


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "0 unknown"


def _distribution() -> str:
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', Path("/etc/os-release").read_text(), re.M)
    return name[1] if name else "unknown"


def _version(command: list[str]) -> str:
    found = re.search(r"\d+\.\d[\w.-]*", _output(*command))
    return found[0] if found else ""
