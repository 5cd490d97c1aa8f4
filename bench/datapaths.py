"""Where a connection may run: each datapath has cgroups of its own, for servers and for clients.

Only what the benchmark starts ever enters those cgroups, so nothing else of the host is touched.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from support import cgroups
from support.topology import Namespace, Network

TCP, OURS, TEXTBOOK, UNIX = "tcp", "sockredird", "textbook", "unix"
EXCLUDED, OUTSIDE, RETIRED = "excluded", "outside", "retired"
JOINED = "joined"  # connections that are older than Enable
TRACED = "traced"  # as sockredird, while somebody runs `sockredirctl trace`
MESH = "mesh"  # as service meshes are told to do it, see load/mesh.bpf.c
AGAIN = "tcp again"  # the null hypothesis: as TCP, with cgroups of its own


def of_base(name: str) -> str:
    """That datapath of the other checkout that sockredird is compared with."""
    return f"base {name}"


@dataclass(frozen=True)
class Datapath:
    """`port` is where a server has to listen, 0 for any. `change` is called once connections are
    established and warm, before they are measured, with their number; `around` is there all the
    time; `unix` means a path instead of a port. Without CPUs, the scheduler chooses them; without a
    network, both ends are on the loopback of the host."""

    name: str
    server: Path
    client: Path
    port: int = 0
    unix: bool = False
    change: Callable[[int], None] | None = None
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    server_cpus: frozenset[int] | None = None
    client_cpus: frozenset[int] | None = None
    network: Network | None = None


def spawn(
    command: list[str],
    cgroup: Path,
    cpus: frozenset[int] | None = None,
    user: int | None = None,
    namespace: Namespace | None = None,
) -> subprocess.Popen[str]:
    """A process inside the cgroup, on those CPUs, with pipes for stdin and stdout."""

    def enter() -> None:
        cgroups.join(cgroup)
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        if namespace is not None:
            namespace.enter()
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)

    return subprocess.Popen(
        command,
        preexec_fn=enter,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cpu_seconds(cgroup: Path) -> float:
    """CPU time of all that ever ran in the cgroup; the kernel keeps it without any controller."""
    for line in (cgroup / "cpu.stat").read_text().splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    raise OSError(f"{cgroup}/cpu.stat has no usage_usec")


def end(process: subprocess.Popen[str]) -> None:
    """A server that does not end by itself."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
