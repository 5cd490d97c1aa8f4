"""What is known and can be done while sockredird does not run: its file, its pins, its own options.

Nothing here starts the daemon, which would restore acceleration.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from sockredirctl.errors import ClientError, Exit, NotRunning

CONFIGURATION = Path("/etc/sockredird/sockredird.toml")
_PATHS = {"bpffs": "/sys/fs/bpf/sockredird", "state": "/var/lib/sockredird"}
_CHECK_S = 20.0
EX_CONFIG = os.EX_CONFIG  # sysexits(3): exit status of `sockredird --check-config` for a bad file


@dataclass(frozen=True)
class Left:
    """What is there without the daemon."""

    datapath: Path | None  # the newest that is pinned
    enabled: bool  # as the daemon remembers it, and will restore it when it starts


def configuration() -> Path:
    return Path(os.environ.get("SOCKREDIRD_CONFIG") or CONFIGURATION)


def left() -> Left:
    """What is pinned and remembered. Raises PermissionError if the caller may not see it."""
    try:
        found = [path for path in _path("bpffs").iterdir() if path.name.startswith("generation-")]
    except (FileNotFoundError, NotADirectoryError):
        found = []
    try:
        enabled = bool(json.loads((_path("state") / "enabled.json").read_text()).get("enabled"))
    except PermissionError:
        raise
    except (OSError, ValueError, AttributeError):
        enabled = False  # the daemon takes a damaged file for this, too
    newest = max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return Left(newest, enabled)


def _path(name: str) -> Path:
    """A key of [paths]."""
    try:
        with configuration().open("rb") as file:
            return Path(tomllib.load(file)["paths"][name])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Path(_PATHS[name])  # configuration_mistake() says what is wrong with the file


def configuration_mistake() -> str:
    """What is wrong with the daemon's file, with its name, the key and the line; empty if nothing.

    The daemon's own check runs in another process: it needs libraries that the client does not.
    """
    path = configuration()
    if not path.exists():
        return ""  # all defaults
    try:
        done = subprocess.run(
            [*_daemon(), "--check-config", str(path)],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHECK_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""  # the check did not run, so nothing is known against the file
    return " ".join(done.stderr.split()) if done.returncode == EX_CONFIG else ""


def explained(error: NotRunning) -> NotRunning:
    """The error with why it does not run, whether acceleration is on without it, and the remedy."""
    if mistake := configuration_mistake():
        return NotRunning(f"{error}: {mistake}; correct it, then run systemctl start sockredird")
    start = "systemctl start sockredird starts it, and systemctl enable sockredird at each boot"
    try:
        there = left()
    except OSError:
        return NotRunning(f"{error}; root can see whether acceleration is on without it; {start}")
    if there.datapath is None:
        later = "; acceleration is restored when sockredird starts" if there.enabled else ""
        return NotRunning(f"{error}, and acceleration is off: nothing is pinned{later}; {start}")
    if there.enabled:
        return NotRunning(
            f"{error}, but acceleration is on without it: its datapath is pinned in "
            f"{there.datapath}; sockredirctl disable ends that; {start}"
        )
    return NotRunning(
        f"{error}; new connections are not accelerated, but older ones may still be: "
        f"{there.datapath} is pinned; sockredirctl disable removes it; {start}"
    )


def disable() -> None:
    """As root: ends acceleration by the daemon's own `--disable`. Raises ClientError."""
    path = configuration()
    chosen = ["--config", str(path)] if path.exists() else []
    done = subprocess.run(
        [*_daemon(), "--disable", "--log-level", "warning", *chosen],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    said = " ".join(done.stderr.split())
    if done.returncode:
        failure = f"sockredird --disable ended with status {done.returncode}"
        raise ClientError(said or failure, Exit.FAILED)
    if said:
        print(said, file=sys.stderr)


def _daemon() -> list[str]:
    """The daemon that belongs to this client. -P: nothing in the current directory is run."""
    return [sys.executable, "-P", "-m", "sockredird"]


def _environment() -> dict[str, str]:
    # JOURNAL_STREAM and NOTIFY_SOCKET are ours, if a unit runs us; we show what the daemon says
    kept = {k: v for k, v in os.environ.items() if k not in ("JOURNAL_STREAM", "NOTIFY_SOCKET")}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[1])}
