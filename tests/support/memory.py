"""What unread data costs the kernel, and limits of memory."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/sys/fs/cgroup/memory")  # version 1
SOCKETS, ALL = "memory.kmem.tcp.limit_in_bytes", "memory.limit_in_bytes"
_numbers = itertools.count()


@contextmanager
def memory_cgroup(kind: str, limit: int) -> Iterator[Path]:
    """A cgroup whose processes get no more memory of that kind together."""
    path = MEMORY / f"srt-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    try:
        (path / kind).write_text(str(limit))
        yield path
    finally:
        path.rmdir()


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


def _tcp_pages() -> int:
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            return int(words[words.index("mem") + 1]) * resource.getpagesize()
    raise KeyError("TCP")


def kernel_bytes() -> int:
    """Unreclaimable slab plus what TCP has charged for buffers, on the whole machine.

    A redirected message is a struct sk_msg, kmalloc'ed (slab kmalloc-1k) without an accounting
    flag, so no memory cgroup sees it; its payload, and TCP's, are page fragments charged to the
    protocol. Both views overlap a little: the sum errs upwards.
    """
    return _meminfo("SUnreclaim") + _tcp_pages()
