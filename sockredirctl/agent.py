"""Lets polkit ask for a password on this terminal, as systemctl does."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

REGISTRATION_S = 10.0


@contextmanager
def running() -> Iterator[None]:
    """pkttyagent(1) serves this process inside the with block.

    Without a terminal, or without pkttyagent, nothing does; an agent of the desktop's may.
    """
    program = shutil.which("pkttyagent")
    if program is None or not sys.stdin.isatty():
        yield
        return
    terminal = termios.tcgetattr(sys.stdin)
    registered, theirs = os.pipe()
    # setpriv: no agent stays behind and reads the terminal if we are killed
    command = ["setpriv", "--pdeathsig", "TERM", program, "--notify-fd", str(theirs)]
    if "XDG_SESSION_ID" in os.environ:
        # leaves it to the desktop's agent; without a session, polkit would not ask either
        command.append("--fallback")
    agent = subprocess.Popen(command, pass_fds=[theirs])
    os.close(theirs)
    try:
        # it closes its end once polkit knows of it, or when it fails
        select.select([registered], [], [], REGISTRATION_S)
        yield
    finally:
        os.close(registered)
        agent.terminate()
        agent.wait()
        # ended while it reads a password, it leaves the echo off
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, terminal)
