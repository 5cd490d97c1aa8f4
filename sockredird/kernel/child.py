"""Starts helper processes of this project as `python3 -m MODULE`; they end with this process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def command(module: str, *arguments: str) -> list[str]:
    """The pid of this process is the last argument, for die_with()."""
    return [sys.executable, "-P", "-m", module, *arguments, str(os.getpid())]


def environment() -> dict[str, str]:
    """With this package on the path, installed or not."""
    package_parent = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def die_with(parent: int) -> None:
    """In the child: ends with the daemon, as nobody wants its results after that (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the daemon is gone")
