"""Network namespaces of a test's own: they end with the process that entered them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def enter_network() -> None:
    """Moves the calling process to a fresh network namespace with lo up."""
    unshare(CLONE_NEWNET)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def enter_network_with_rps() -> None:
    """As above, with lo's packets spread over all CPUs (Receive Packet Steering)."""
    enter_network()
    unshare(CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    # /sys/class/net shows the namespace of whoever mounted sysfs
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    mask = (1 << (os.cpu_count() or 1)) - 1
    Path("/sys/class/net/lo/queues/rx-0/rps_cpus").write_text(f"{mask:x}")


def sysctl(name: str, value: str) -> None:
    Path("/proc/sys", *name.split(".")).write_text(value)


def allow_fast_open(mode: int = 0x1 | 0x2 | 0x4 | 0x200) -> None:
    """TCP Fast Open; for clients and servers, without a cookie, unless it says for whom.

    The bits are those of Documentation/networking/ip-sysctl.rst.
    """
    sysctl("net.ipv4.tcp_fastopen", str(mode))


def netstat(counter: str) -> int:
    """A TcpExt counter of the calling process's namespace."""
    lines = Path("/proc/net/netstat").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    return int(values[names.index(counter)])
