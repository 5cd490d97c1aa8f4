"""File systems as files, made and read without a mount."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def make(image: Path, tree: Path, room: int) -> None:
    """An ext4 file system holding what `tree` holds and `room` free bytes; the file is sparse."""
    output = subprocess.run(
        ["du", "-sxB1", str(tree)], check=True, capture_output=True, text=True
    ).stdout
    with image.open("wb") as file:
        # a tenth for inodes and the journal
        os.truncate(file.fileno(), (int(output.split()[0]) * 11 // 10 + room) & ~0xFFFFF)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image)], check=True)


def copy(image: Path, to: Path) -> None:
    """Leaves out what is empty, and shares the rest where the file system can."""
    command = ["cp", "--sparse=always", "--reflink=auto", str(image), str(to)]
    subprocess.run(command, check=True)


def extract(image: Path, directory: str, into: Path) -> None:
    """Copies a directory out, as far as it can be read: the guest may have died writing."""
    into.mkdir(parents=True, exist_ok=True)
    # debugfs exits 0 whatever happened
    subprocess.run(
        ["debugfs", "-R", f'rdump "{directory}" "{into}"', str(image)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
