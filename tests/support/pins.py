"""Tampering with what is pinned, to be undone after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockredird.datapath import links
from sockredird.datapath.visits import MEMBERS
from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.libbpf_prototypes import lib
from sockredird.kernel.uapi import MapType


def ids(directory: Path) -> dict[str, tuple[str, int]]:
    """Kind and kernel id of each pin in a directory."""
    info = {"prog": libbpf.prog_info, "map": libbpf.map_info, "link": libbpf.link_info}
    found = {}
    for path in sorted(directory.iterdir()):
        with libbpf.open_pin(path) as fd:
            kind = libbpf.object_kind(fd)
            found[path.name] = (kind, int(info[kind](fd).id))
    return found


def path(directory: Path, name: str) -> Path:
    """The pin of that name; `attached` is the link of the only cgroup in scope to `pair`."""
    if name == MEMBERS and not (directory / name).exists():
        pytest.skip("this kernel permits no iterator over a map, which would have a link")
    if name != "attached":
        return directory / name
    (link,) = directory.glob("attached-pair-*")
    return link


def detach(directory: Path) -> None:
    """Unlinks what keeps the programs attached."""
    for link in links.pinned(directory):
        link.unlink()


@contextmanager
def put_aside(pin: Path) -> Iterator[Path]:
    """The pin is elsewhere inside the with block, and back after it; the value is where."""
    aside = pin.parent.parent / f"aside-{pin.name}"
    pin.rename(aside)
    try:
        yield aside
    finally:
        pin.unlink(missing_ok=True)
        aside.rename(pin)


def new_map(kind: MapType, name: str, key_size: int, value_size: int, max_entries: int) -> Fd:
    fd = lib.bpf_map_create(kind, name.encode(), key_size, value_size, max_entries, None)
    if fd < 0:
        raise OSError(-fd, f"create map {name}")
    return Fd(fd)


def write_manifest(directory: Path, content: dict[str, object] | bytes) -> bytes:
    """Overwrites a generation's notes; the ones before."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    with libbpf.open_pin(directory / "manifest") as fd:
        size = int(libbpf.map_info(fd).value_size)
        before = libbpf.lookup(fd, bytes(4), size)
        libbpf.update(fd, bytes(4), text.ljust(size, b"\0"))
    return before
