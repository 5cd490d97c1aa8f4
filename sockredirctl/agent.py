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
    """Within the with block, pkttyagent(1) asks for passwords on behalf of this process.

    It needs a terminal. Without one, or without pkttyagent, only the desktop's agent may ask.
    """
    program = shutil.which("pkttyagent")
    if program is None or not sys.stdin.isatty():
        yield
        return
    terminal = termios.tcgetattr(sys.stdin)
    registered, theirs = os.pipe()
    # with setpriv, no agent stays behind and reads the terminal if we are killed
    command = ["setpriv", "--pdeathsig", "TERM", program, "--notify-fd", str(theirs)]
    if "XDG_SESSION_ID" in os.environ:
        # leaves it to the desktop's agent; without a session, polkit asks no fallback agent
        command.append("--fallback")
    agent = subprocess.Popen(command, pass_fds=[theirs])
    os.close(theirs)
    try:
        # the agent closes its end once it is registered with polkit, or when it fails
        select.select([registered], [], [], REGISTRATION_S)
        yield
    finally:
        os.close(registered)
        agent.terminate()
        agent.wait()
        # an agent that is ended while it reads a password leaves the echo off
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, terminal)
