"""Private cgroups below the cgroup2 mount; only processes the tests forked go into them."""

from __future__ import annotations

import itertools
import os
import select
import signal
from contextlib import suppress
from pathlib import Path

from sockredird.kernel.cgroup import mount_point

_numbers = itertools.count()


def create() -> Path:
    path = mount_point() / f"srt-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    return path


def join(cgroup: Path) -> None:
    """Moves the calling process; sockets it makes from here on belong to the cgroup."""
    (cgroup / "cgroup.procs").write_text("0")


def empty(cgroup: Path, timeout: float = 5.0) -> None:
    """Kills what is in it; returns when nothing is."""
    for pid in map(int, (cgroup / "cgroup.procs").read_text().split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # the kernel raises POLLPRI on cgroup.events when the last process has left
    with (cgroup / "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            if not poll.poll(timeout * 1000):
                raise TimeoutError(f"{cgroup} still has processes {timeout:.0f} s after SIGKILL")
            events.seek(0)


def remove(cgroup: Path) -> None:
    empty(cgroup)
    cgroup.rmdir()
