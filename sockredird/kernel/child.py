"""Child processes that run a module of this project and end when this process ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module`; its last argument, our pid, is for die_with()."""
    return [sys.executable, "-P", "-m", module, *arguments, str(os.getpid())]


def environment() -> dict[str, str]:
    """The environment for command(): this package is on the path, even if it is not installed."""
    package_parent = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def die_with(parent: int) -> None:
    """For the child: the kernel kills it when its parent ends (PR_SET_PDEATHSIG, prctl(2)).

    Exits at once if the parent has ended already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the daemon is gone")
