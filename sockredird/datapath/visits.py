"""Visits every socket on a sockhash once, with the program that is pinned as `walk`.

It is an iterator, with a link over the sockhash. Where the kernel refuses iterators over maps, it
is the program's substitute, and the daemon has the kernel run that for each key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.uapi import LinkType, ProgType
from sockredird.loader.header import constant, record

MEMBERS = "members"  # the link's pin
_ZERO = bytes(4)


def iterates(walk: Fd) -> bool:
    """Whether the program is an iterator, which has a link."""
    return bool(libbpf.prog_info(walk).type == ProgType.TRACING)


def link(walk: Fd, peers: Fd, directory: Path) -> None:
    """Pins the link, if the program takes one. Raises OSError."""
    if iterates(walk):
        with libbpf.create_iterator_link(walk, peers) as members:
            libbpf.pin(members, directory / MEMBERS)


def link_of(pins: Mapping[str, Fd]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Type, program and map of the pinned link, as they are and as they should be."""
    info = libbpf.link_info(pins[MEMBERS])
    walk, peers = libbpf.prog_info(pins["walk"]).id, libbpf.map_info(pins["peers"]).id
    return (info.type, info.prog_id, info.detail.iter.map_id), (int(LinkType.ITER), walk, peers)


def visit(pins: Mapping[str, Fd], line_size: int) -> Iterator[bytes]:
    """What the program writes, several lines of this size at a time. Raises OSError."""
    if MEMBERS not in pins:
        yield from _run_for_each(pins, line_size)
        return
    with libbpf.open_iterator(pins[MEMBERS]) as lines:
        while chunk := libbpf.read_iterator(lines):
            yield chunk


def _run_for_each(pins: Mapping[str, Fd], line_size: int) -> Iterator[bytes]:
    shape, stride = record("visits"), record("connection").size
    # before the first visit, as visits delete keys
    keys = list(libbpf.each_key(pins["peers"], record("end").size))
    at = 0
    while some := keys[at : at + constant("VISITS")]:
        asked = bytes(shape.offsets["keys"]) + b"".join(some)
        libbpf.update(pins["visits"], _ZERO, asked.ljust(shape.size, b"\0"))
        with suppress(InterruptedError):  # what it had come to is in the answer
            libbpf.test_run(pins["walk"], len(some))
        answer = libbpf.lookup(pins["visits"], _ZERO, shape.size)
        visited, count = struct.unpack_from("=II", answer)
        starts = range(shape.offsets["line"], shape.offsets["line"] + count * stride, stride)
        if lines := b"".join(answer[start : start + line_size] for start in starts):
            yield lines
        at += visited
