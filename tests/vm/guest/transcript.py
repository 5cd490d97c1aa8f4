"""Commands as an administrator types them on a terminal, kept with what they print.

What is kept becomes docs/first-day.md, see vm/first_day.py.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Callable
from pathlib import Path

from shell import TIMEOUT_S, Failed

KEPT = Path("/share/results/first-day.md")
LINES, COLUMNS = 200, 100
# what is on a line of a terminal no more
OVERWRITTEN = re.compile(r"[^\n]*\r(?:\x1b\[K)?(?!\n)")


def begin() -> None:
    KEPT.unlink(missing_ok=True)


def chapter(title: str, text: str) -> None:
    _keep(f"\n## {title}\n\n{text}\n")


def typed(
    command: str,
    *,
    user: str = "root",
    status: int = 0,
    once: tuple[str, Callable[[], object]] | None = None,
) -> str:
    """What the command prints; raises Failed if it does not exit with `status`.

    `once` is a text, and what is called when it has been printed.
    Its output is a terminal; its input is not, so that polkit asks nobody for a password.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(
        ["runuser", "-u", user, "--", "bash", "-c", command],
        cwd="/share/package",
        env={**os.environ, "TERM": "dumb", "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    late = threading.Timer(TIMEOUT_S, process.kill)
    late.start()
    data = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            data += chunk
            if once and once[0].encode() in data:
                once[1]()
                once = None
    except OSError:  # EIO: nobody has the terminal any more
        pass
    found = process.wait()
    late.cancel()
    os.close(ours)
    output = OVERWRITTEN.sub("", data.decode(errors="replace").replace("\r\n", "\n"))
    prompt = "#" if user == "root" else "$"
    print(f"{prompt} {command}\n{output}", end="")
    if found != status:
        raise Failed(command, found, output)
    lines = [f"{prompt} {command}", *output.rstrip().splitlines()]
    if status:
        lines.append(f"(exit status {status})")
    _keep("\n" + "".join(f"    {line}".rstrip() + "\n" for line in lines))
    return output


def _keep(text: str) -> None:
    with KEPT.open("a") as file:
        file.write(text)
