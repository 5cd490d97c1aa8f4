"""Which processes have sockets open, from /proc; for the few sockets somebody asks about.

Listings of many connections have this from the kernel instead: bpf/list.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sockredird.errors import InvalidConfig


@dataclass(frozen=True)
class Process:
    pid: int
    comm: str


def _sockets(pid: int) -> Iterator[int]:
    """Inode of each socket a process has open. OSError if it is gone."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            target = os.readlink(entry)  # noqa: PTH115 (a Path for each would take twice as long)
            if target.startswith("socket:["):
                yield int(target[8:-1])


def sockets_of(pid: int) -> set[int]:
    """Inodes of all sockets a process has open. Raises InvalidConfig if there is no such one."""
    try:
        return set(_sockets(pid))
    except (FileNotFoundError, ProcessLookupError):
        raise InvalidConfig(f"there is no process {pid}") from None


def find(inodes: set[int]) -> dict[int, Process]:
    """The first process that has each of these sockets open; holds no others in memory."""
    found: dict[int, Process] = {}
    for pid in sorted(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()):
        if found.keys() >= inodes:
            break
        with suppress(OSError):  # it has ended
            mine = {inode for inode in _sockets(pid) if inode in inodes}
            if mine:
                process = Process(pid, Path(f"/proc/{pid}/comm").read_text().strip())
                for inode in mine:
                    found.setdefault(inode, process)
    return found
