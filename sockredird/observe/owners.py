"""Which processes have a socket open, for the few sockets that somebody asks about.

For a list of connections the iterator in bpf/show/list.c notes this in the kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sockredird.datapath.generation import Generation
from sockredird.loader.header import record
from sockredird.loader.records import text


@dataclass(frozen=True)
class Process:
    pid: int
    comm: str


def _opened(generation: Generation) -> Iterator[Any]:
    for chunk in generation.opened():
        yield from record("opened").iter_unpack(chunk)


def sockets_of(generation: Generation, pids: Collection[int]) -> set[int]:
    """Inodes of the TCP sockets that processes have open."""
    return {one.inode for one in _opened(generation) if one.owner.pid in pids}


def find(generation: Generation, inodes: set[int]) -> dict[int, Process]:
    """The first process that has each of these sockets open."""
    found: dict[int, Process] = {}
    for one in _opened(generation):
        if one.inode in inodes and one.inode not in found:
            found[one.inode] = Process(one.owner.pid, text(one.owner.comm))
    return found
