"""Values of options: ports, processes and durations, as people write them."""

from __future__ import annotations

import argparse
import os
import socket
from contextlib import suppress
from pathlib import Path

from dbus_next import Variant

from sockredirctl.errors import ClientError, Exit

_COMM = 15  # bytes of a program's name that the kernel keeps


def port(text: str) -> int:
    """A number, or the name of a service in services(5)."""
    if text.isascii() and text.isdigit():
        if 0 < (number := int(text[:6])) < 65536:
            return number
        raise argparse.ArgumentTypeError(f"{text}: a port is a number from 1 to 65535")
    try:
        return socket.getservbyname(text, "tcp")
    except (OSError, UnicodeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a port, from 1 to 65535, nor a service in /etc/services"
        ) from None


def ports(text: str) -> list[int]:
    """Several, with commas between."""
    return [port(part.strip()) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Several, with commas between."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} contains an empty name")
    return found


def seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < 86400:
            return value
    raise argparse.ArgumentTypeError(
        f"{text!r}: must be a number of seconds, more than 0 and less than 86400"
    )


def count(text: str) -> int:
    """How many to show; 0 is all."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 0 for all")


def process(text: str) -> dict[str, Variant]:
    """The keys of a query for a process: by its pid, its program's name, or its systemd unit.

    Raises ClientError if there is none.
    """
    if text.isdigit():
        if not Path(f"/proc/{text}").exists():
            raise ClientError(f"there is no process {text}", Exit.NOTHING)
        return {"pid": Variant("u", int(text))}
    if found := running(text):
        return {"pids": Variant("au", found)}
    return {"unit": Variant("s", text)}


def running(program: str) -> list[int]:
    """Pids of the processes that run a program of this name."""
    return sorted(
        int(entry.name)
        for entry in os.scandir("/proc")
        if entry.name.isdigit() and program in _names(Path(entry.path))
    )


def _names(process: Path) -> set[str]:
    """The name that the kernel keeps of a program, and that of its file, which is not cut short."""
    try:
        comm = (process / "comm").read_text().rstrip("\n")
        first = (process / "cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except OSError:  # it has ended
        return set()
    name = first.rpartition("/")[2]
    return {comm, name} if name.startswith(comm) or len(comm) < _COMM else {comm}
