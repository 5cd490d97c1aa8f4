"""The mounted file systems, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mount:
    device: str  # major:minor
    point: Path
    filesystem: str


def parse(text: str) -> list[Mount]:
    mounts = []
    # splitlines() would also split at characters that the kernel does not escape
    for line in text.split("\n"):
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 6:
            continue
        # the kernel writes blanks and backslashes in paths as octal numbers
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
        mounts.append(Mount(fields[2], Path(point), right.split(" ", 1)[0]))
    return mounts


def mounts() -> list[Mount]:
    return parse(os.fsdecode(MOUNTINFO.read_bytes()))


def filesystem_of(path: Path) -> str:
    """Type of the file system that holds an existing path, e.g. 'bpf'; '' if unknown."""
    device = path.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    return next((m.filesystem for m in mounts() if m.device == name), "")
