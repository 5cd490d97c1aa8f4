"""What the kernel says of the daemon's datapath, the daemon alive or not."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sockredird.datapath.generation import Generation
from sockredird.kernel import libbpf
from sockredird.kernel.libbpf_prototypes import lib
from sockredird.kernel.mounts import mounts
from sockredird.loader.header import record
from sockredird.loader.records import Settings
from sockredird.loader.shapes import PROGRAMS, map_shapes
from support.waiting import eventually

RETIRE_TIMEOUT_S = 10.0
_ID_FIELDS = ("prog_id:", "map_id:", "link_id:")


@dataclass(frozen=True)
class Ids:
    """Kernel ids of BPF objects; never given twice."""

    programs: frozenset[int]
    maps: frozenset[int]
    links: frozenset[int]


def directories(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


@contextmanager
def opened(root: Path) -> Iterator[Generation]:
    """The only generation on the bpffs. Its descriptors keep its objects alive while open."""
    (name,) = directories(root)
    with closing(Generation.adopt(root / name)) as generation:
        yield generation


def ids(root: Path) -> Ids:
    """Of all that is pinned by the only generation."""
    (name,) = directories(root)
    directory = root / name
    programs, maps, links = set(), set(), set()
    for path in directory.iterdir():
        with libbpf.open_pin(path) as fd:
            if path.name in PROGRAMS:
                programs.add(libbpf.prog_info(fd).id)
            elif path.name in map_shapes(1, 4096):
                maps.add(libbpf.map_info(fd).id)
            else:
                links.add(libbpf.link_info(fd).id)
    return Ids(frozenset(programs), frozenset(maps), frozenset(links))


def counters(root: Path) -> dict[str, int]:
    with opened(root) as generation:
        return generation.counters()


def made(counts: dict[str, int]) -> int:
    """Connections accelerated from the start."""
    return counts["accelerated_connections"] - counts["joined_connections"]


def settings(root: Path) -> Settings:
    """What the programs read, not what an object in the daemon remembers."""
    (name,) = directories(root)
    with libbpf.open_pin(root / name / "settings") as fd:
        return Settings.unpack(libbpf.lookup(fd, bytes(4), record("settings").size))


def machine() -> Ids:
    """All BPF objects of the machine."""

    def list_ids(kind: str) -> frozenset[int]:
        # not by bpftool, which fails if an object goes away while it lists them
        following = getattr(lib, f"bpf_{kind}_get_next_id")
        number = ctypes.c_uint32(0)
        found = set()
        while following(number, ctypes.byref(number)) == 0:
            found.add(number.value)
        return frozenset(found)

    return Ids(list_ids("prog"), list_ids("map"), list_ids("link"))


def held_by(pid: int) -> set[str]:
    """The BPF objects a process has open, e.g. 'map_id: 17'."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            found |= _entries(path)
    return found


def _entries(fdinfo: Path) -> set[str]:
    lines = fdinfo.read_text().splitlines()
    return {" ".join(line.split()) for line in lines if line.startswith(_ID_FIELDS)}


def await_release(*gone: Ids, ours: Path | None = None) -> None:
    """Returns when none of these objects is on the machine any more.

    With `ours`, a bpffs, those do not count that another process has open or that are pinned
    elsewhere: they are of daemons and tests beside this one.

    The kernel frees them in workqueues, and tells nobody when.
    """
    wanted = set().union(*map(_names, gone))

    def released() -> bool:
        left = wanted & _names(machine())
        if ours is not None:
            left = left - _open_elsewhere() - _pinned_elsewhere(ours)
        return not left

    eventually(released, f"none of {gone} left")


def _names(ids: Ids) -> set[str]:
    """As held_by() has them."""
    kinds = (ids.programs, ids.maps, ids.links)
    return {
        f"{field} {number}"
        for field, numbers in zip(_ID_FIELDS, kinds, strict=True)
        for number in numbers
    }


def _pinned_elsewhere(ours: Path) -> set[str]:
    found: set[str] = set()
    for mount in mounts():
        if mount.filesystem != "bpf" or mount.point == ours:
            continue
        # which, unlike rglob(), goes on where a directory has gone meanwhile
        for directory, _, names in os.walk(mount.point):
            for name in names:
                with suppress(OSError), libbpf.open_pin(Path(directory) / name) as fd:
                    found |= _entries(Path(f"/proc/self/fdinfo/{fd.number}"))
    return found


def _open_elsewhere() -> set[str]:
    found: set[str] = set()
    for path in Path("/proc").glob("[0-9]*"):
        if int(path.name) != os.getpid():
            with suppress(OSError):  # ended meanwhile
                found |= held_by(int(path.name))
    return found


def tear_down(root: Path) -> None:
    """Takes away what a test left enabled, or half done, its daemon being gone."""
    for name in directories(root):
        if name.startswith("staging"):
            for path in (root / name).iterdir():
                path.unlink()
            (root / name).rmdir()
            continue
        generation = Generation.adopt(root / name)
        generation.stop()
        assert generation.members.retire(RETIRE_TIMEOUT_S, lambda walked: walked.entries == 0)
        generation.remove()
