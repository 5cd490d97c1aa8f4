"""Commands as a user types them."""

from __future__ import annotations

import subprocess

# Of a command in an emulated machine
TIMEOUT_S = 360


class Failed(AssertionError):
    def __init__(self, command: str, status: int, output: str) -> None:
        super().__init__(f"$ {command}\n{output.rstrip()}\n[exit status {status}]")
        self.status = status
        self.output = output


def sh(command: str, *, user: str = "root") -> str:
    """What the command prints, in the directory with the package; raises Failed if it fails."""
    process = subprocess.run(
        ["runuser", "-u", user, "--", "bash", "-c", command],
        cwd="/share/package",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    print(f"$ {command}\n{process.stdout}", end="")
    if process.returncode != 0:
        raise Failed(command, process.returncode, process.stdout)
    return process.stdout
