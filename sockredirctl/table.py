"""Tables that fit the terminal, and the pager, as systemctl(1) has them."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_GAP = 2  # columns of the terminal between those of a table
_CONTAINER = re.compile(r"([0-9a-f]{12})[0-9a-f]{52}")
_COLOURS = {"green": "32", "yellow": "33", "red": "1;31"}


@dataclass(frozen=True)
class Column:
    """`rank`: where room is short, the column with the highest one is left out first.

    `least`: the width below which cells are not shortened; 0 if they are never shortened.
    """

    title: str
    rank: int
    least: int = 0
    right: bool = False


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of every command that prints a table."""
    command.add_argument(
        "-o",
        "--output",
        choices=["short", "wide", "json"],
        default="short",
        help="short fits the terminal, wide shows everything, json is --json (default: short)",
    )
    command.add_argument("--no-pager", action="store_true", help="do not run a pager")


def width(arguments: argparse.Namespace) -> int | None:
    """How many columns a table may take; None, for no limit, if wide or not on a terminal."""
    if arguments.output == "wide" or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def text(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """A title line and the rows, `width` columns wide at most."""
    shown = list(range(len(columns)))
    whole = [max(len(row[i]) for row in (*rows, [c.title for c in columns])) for i in shown]
    least = [
        min(length, max(column.least, len(column.title))) if column.least else length
        for column, length in zip(columns, whole, strict=True)
    ]
    while width is not None and len(shown) > 1 and _total(least, shown) > width:
        shown.remove(max(shown, key=lambda i: columns[i].rank))
    lengths = list(whole)
    while width is not None and _total(lengths, shown) > width:
        # the column that can be shortened most is shortened first
        longest = max(shown, key=lambda i: lengths[i] - least[i])
        if lengths[longest] == least[longest]:
            break
        lengths[longest] -= 1
    lines = []
    for row in ([column.title for column in columns], *rows):
        cells = [shortened(row[i], lengths[i]) for i in shown]
        padded = (
            cell.rjust(lengths[i]) if columns[i].right else cell.ljust(lengths[i])
            for i, cell in zip(shown, cells, strict=True)
        )
        lines.append((" " * _GAP).join(padded).rstrip())
    return "\n".join(lines)


def _total(lengths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(lengths[i] for i in shown) + _GAP * (len(shown) - 1)


def shortened(text: str, length: int) -> str:
    """`text` shortened in the middle, since names differ at either end."""
    if len(text) <= length:
        return text
    if length < 4:
        return text[:length]
    ellipsis = "…" if (sys.stdout.encoding or "").lower().startswith("utf") else "..."
    kept = length - len(ellipsis)
    return text[: kept - kept // 2] + ellipsis + text[len(text) - kept // 2 :]


def short_ids(name: str) -> str:
    """Names of containers as docker and podman show them."""
    return _CONTAINER.sub(r"\1", name)


def size(count: int) -> str:
    """With a unit of 1024, e.g. '1.5K'."""
    return _scaled(count, 1024, "BKMGTPE")


def number(count: float) -> str:
    """With a unit of 1000, e.g. '1.5M'."""
    return _scaled(count, 1000, " KMGTPE")


def _scaled(count: float, base: int, units: str) -> str:
    unit = units[0].strip()
    value = float(count)
    for unit_ in units[1:]:
        if round(value, 1 if unit != units[0].strip() else 0) < base:
            break
        value /= base
        unit = unit_
    return f"{value:.0f}{unit}" if unit == units[0].strip() else f"{value:.1f}{unit}"


def coloured(text: str, colour: str) -> str:
    """On a terminal, unless NO_COLOR (no-color.org) is set, or it is a dumb one."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def show(text: str, *, pager: bool) -> None:
    """Prints it, through a pager if it is longer than the terminal."""
    command = _pager() if pager and sys.stdout.isatty() else None
    if command is None or text.count("\n") + 2 <= shutil.get_terminal_size().lines:
        print(text)
        return
    try:
        subprocess.run(
            command,
            input=f"{text}\n",
            text=True,
            check=False,
            env={"LESS": "FRSXMK", **os.environ},  # as systemctl; LESSSECURE for root
        )
    except OSError:
        print(text)


def _pager() -> list[str] | None:
    """The pager that systemctl(1) would choose; None if that is empty, or cat."""
    for name in ("SYSTEMD_PAGER", "PAGER"):
        if (chosen := os.environ.get(name)) is not None:
            return shlex.split(chosen) if chosen not in ("", "cat") else None
    return ["less"] if shutil.which("less") else None
