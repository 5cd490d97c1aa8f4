"""Which listeners belong to programs that are likely to splice(2) from their connections.

Such a program hangs on an accelerated connection where the kernel has no ftrace. Go's io.Copy
between two TCP connections uses splice(2), and so does every proxy in Go that calls it.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sockredird.check.gobinary import is_go
from sockredird.datapath.generation import Generation
from sockredird.kernel import sockdiag
from sockredird.observe import owners
from sockredird.observe.owners import Process

_HAPROXY_CONFIG = "/etc/haproxy/haproxy.cfg"
_HAPROXY_SPLICES = re.compile(r"^\s*option\s+splice-(auto|request|response)\b", re.MULTILINE)
_CONFIG_MOST = 1 << 20


@dataclass(frozen=True)
class Splicer:
    process: Process
    ports: tuple[int, ...]
    what: str

    def __str__(self) -> str:
        ports = ", ".join(map(str, self.ports))
        return f"{self.process.comm}[{self.process.pid}] on port {ports} ({self.what})"


def find(candidate: Generation) -> tuple[list[Splicer], list[Process]]:
    """Such listeners in this network namespace, and the programs that could not be looked at.

    The iterator of any generation shows who has a socket open. To read /proc/PID/fd would take
    capabilities.
    """
    listening = {s.inode: s.local.port for s in sockdiag.look().sockets if s.listening and s.inode}
    ports: dict[Process, set[int]] = {}
    for inode, process in owners.find(candidate, set(listening)).items():
        ports.setdefault(process, set()).add(listening[inode])
    found, unknown = [], []
    for process in sorted(ports, key=lambda p: p.pid):
        what = likely(process)
        if what is None:
            unknown.append(process)
        elif what:
            found.append(Splicer(process, tuple(sorted(ports[process])), what))
    return found, unknown


def unit(process: Process) -> str:
    """The systemd unit it runs in; empty if in none, or if it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    path = next((line.partition("::")[2] for line in lines if line.startswith("0::")), "")
    return next((part for part in path.split("/") if part.endswith((".service", ".scope"))), "")


def likely(process: Process) -> str | None:
    """Why a program is likely to splice; empty if it is not, None if that cannot be known."""
    if process.comm == "docker-proxy":
        return "the proxy of published ports"
    if process.comm == "haproxy":
        return _haproxy(_arguments(process.pid))
    binary = _open_binary(process.pid)
    if binary is None:
        return None
    try:
        return "built by Go, splices if it is a proxy" if is_go(binary) else ""
    finally:
        os.close(binary)


def _arguments(pid: int) -> list[str]:
    """The arguments of a process. Everybody may read them, unlike /proc/PID/exe."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    except OSError:
        return []


def _open_binary(pid: int) -> int | None:
    """The binary of a process. Without CAP_SYS_PTRACE, the file that its first argument names."""
    for path in (f"/proc/{pid}/exe", *_arguments(pid)[:1]):
        if path.startswith("/"):
            with suppress(OSError):
                return open_file(path)
    return None


def open_file(path: str) -> int:
    """Opens a regular file, whose name anybody may have chosen. Raises OSError if it is none."""
    # O_PATH does not open a device, which could have consequences
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is no file")
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _haproxy(arguments: list[str]) -> str | None:
    files = [Path(b) for a, b in itertools.pairwise(arguments) if a == "-f"]
    texts = list(_texts(files or [Path(_HAPROXY_CONFIG)]))
    if any(map(_HAPROXY_SPLICES.search, texts)):
        return "its configuration has option splice-..."
    return "" if texts else None


def _texts(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        with suppress(OSError):
            for file in sorted(path.glob("*.cfg")) if path.is_dir() else [path]:
                with open(open_file(str(file)), errors="replace") as opened:
                    yield opened.read(_CONFIG_MOST)
