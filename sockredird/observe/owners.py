"""Which processes have a socket open; for the few sockets somebody asks about.

In a listing of connections the kernel notes this itself: bpf/list.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sockredird.datapath.generation import Generation
from sockredird.loader.records import OPENED, text


@dataclass(frozen=True)
class Process:
    pid: int
    comm: str


def _opened(generation: Generation) -> Iterator[tuple[int, int, bytes]]:
    for chunk in generation.opened():
        yield from OPENED.iter_unpack(chunk)


def sockets_of(generation: Generation, pid: int) -> set[int]:
    """Inodes of the TCP sockets a process has open."""
    return {inode for inode, owner, _comm in _opened(generation) if owner == pid}


def find(generation: Generation, inodes: set[int]) -> dict[int, Process]:
    """The first process that has each of these sockets open."""
    found: dict[int, Process] = {}
    for inode, pid, comm in _opened(generation):
        if inode in inodes and inode not in found:
            found[inode] = Process(pid, text(comm))
    return found
