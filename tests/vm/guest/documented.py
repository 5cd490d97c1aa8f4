"""What docs/containers.md has an administrator type."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from shell import sh

DOCUMENT = Path("/share/checkout/docs/containers.md")


def chapter(title: str) -> str:
    (text,) = re.findall(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL
    )
    return str(text)


def write_files(title: str, directory: str) -> None:
    """Its fenced blocks, each to the last file that is named before it."""
    for before, text in re.findall(r"(.*?)^```\w+\n(.*?)^```", chapter(title), re.M | re.S):
        name = Path(re.findall(r"`([\w./-]+\.(?:yaml|network|container))`", before)[-1])
        file = Path(directory) / name  # an absolute name stands for itself
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def type_commands(title: str, before_list: Callable[[], None]) -> list[str]:
    """Types the commands, and returns what each `list` among them printed.

    `before_list` waits until there is what it should show.
    """
    lists = []
    for command in re.findall(r"^    # (.*)$", chapter(title), re.MULTILINE):
        if command.startswith("sockredirctl list"):
            before_list()
            lists.append(sh(command))
        else:
            sh(command)
    return lists
