"""Tells a process that waits for ever from one that a loaded machine does not run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

Look = frozenset[tuple[str, str]]


def look(cgroup: Path) -> Look | None:
    """Context switches of every thread in the cgroup; None if one of them runs, or wants to."""
    seen = set()
    for pid in (cgroup / "cgroup.procs").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path("/proc", pid, "task").iterdir():
                status = (task / "status").read_text()
                state = status.split("State:\t", 1)[1][0]
                if state not in "STZ":  # sleeping, stopped, zombie
                    return None
                seen.add((task.name, status[status.index("voluntary_ctxt_switches") :]))
    return frozenset(seen)


def places(cgroup: Path) -> str:
    """Where in the kernel each thread sleeps, for people."""
    lines = []
    for pid in (cgroup / "cgroup.procs").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path("/proc", pid, "task").iterdir():
                call = (task / "syscall").read_text().split()[0]
                lines.append(f"{task.name}: system call {call}, {(task / 'wchan').read_text()}")
    return "\n".join(lines)


class Vigil:
    """Counts the looks since anything last happened in a cgroup."""

    def __init__(self, cgroup: Path) -> None:
        self._cgroup = cgroup
        self._before: Look | None = None
        self.quiet = 0

    def look(self) -> int:
        now = look(self._cgroup)
        self.quiet = self.quiet + 1 if now is not None and now == self._before else 0
        self._before = now
        return self.quiet
