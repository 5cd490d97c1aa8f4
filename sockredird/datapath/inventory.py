"""What is on the bpffs: the daemon's directory, its lock, and the generations in it."""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from sockredird.datapath.adoption import is_ours
from sockredird.datapath.generation import Generation
from sockredird.errors import AlreadyRunning, LoadFailed, UnsupportedKernel
from sockredird.kernel.mounts import filesystem_of

LOCK_TIMEOUT_S = 2.0
_NAME = re.compile(r"(generation|staging)-(\d+)")


def check_bpffs(root: Path) -> None:
    """Raises UnsupportedKernel unless `root`, or its nearest existing parent, is on a bpffs."""
    existing = root
    while not existing.exists():
        existing = existing.parent
    if filesystem_of(existing) != "bpf":
        raise UnsupportedKernel(
            f"{root} is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf, "
            "or point [paths] bpffs at one"
        )


def lock(root: Path) -> int:
    """A descriptor that holds the lock on `root`, made if need be: one daemon per directory.

    Raises AlreadyRunning naming the holder after LOCK_TIMEOUT_S.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # somebody may have removed the directory, and made it anew, since it was opened
            if root.exists() and os.fstat(fd).st_ino == root.stat().st_ino:
                return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = _holder(os.fstat(fd))
                os.close(fd)
                raise AlreadyRunning(
                    f"another sockredird ({holder}) uses {root}: stop it first"
                ) from None
            time.sleep(0.05)
        os.close(fd)


def unlock(fd: int, root: Path) -> None:
    """Releases the lock, and removes the directory if it is empty."""
    with suppress(OSError):
        root.rmdir()
    os.close(fd)


def _holder(status: os.stat_result) -> str:
    """Who holds the lock, from /proc/locks (proc_locks(5))."""
    device = status.st_dev
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == wanted:
            return f"pid {fields[4]}"
    return "of unknown pid"


def scan(root: Path) -> tuple[list[Path], list[Generation]]:
    """Staging directories, and the generations, newest first; opened and checked.

    Raises LoadFailed at the first thing that is not sockredird's; nothing is changed.
    """
    staging: list[Path] = []
    numbered: list[tuple[int, Path]] = []
    for path in root.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir() and match[1] == "generation":
            numbered.append((int(match[2]), path))
        elif match and path.is_dir() and is_ours(path):
            staging.append(path)
        else:
            raise _strange(path)
    return staging, [Generation.adopt(path) for _, path in sorted(numbered, reverse=True)]


def next_number(root: Path) -> int:
    """The number of a new generation. Raises LoadFailed if something strange is in `root`."""
    numbers = [0]
    for path in root.iterdir() if root.exists() else []:
        match = _NAME.fullmatch(path.name)
        if not match:
            raise _strange(path)
        numbers.append(int(match[2]))
    return 1 + max(numbers)


def _strange(path: Path) -> LoadFailed:
    return LoadFailed(
        f"{path} is not sockredird's. Nothing was changed; remove it, or point [paths] bpffs "
        "elsewhere"
    )
