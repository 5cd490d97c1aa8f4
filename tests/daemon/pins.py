"""What the kernel says of the daemon's datapath, the daemon alive or not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sockredird import libbpf
from sockredird.generation import Generation
from sockredird.layout import PROGRAMS, SETTINGS, Settings, map_shapes

from .waiting import eventually

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


def settings(root: Path) -> Settings:
    """What the programs read, not what an object in the daemon remembers."""
    (name,) = directories(root)
    with libbpf.open_pin(root / name / "settings") as fd:
        return Settings.unpack(libbpf.lookup(fd, bytes(4), SETTINGS.size))


def machine() -> Ids:
    """All BPF objects of the machine."""

    def list_ids(kind: str) -> frozenset[int]:
        command = ["bpftool", "--json", kind, "show"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return frozenset(item["id"] for item in json.loads(done.stdout or "[]"))

    return Ids(list_ids("prog"), list_ids("map"), list_ids("link"))


def held_by(pid: int) -> set[str]:
    """The BPF objects a process has open, e.g. 'map_id: 17'."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            lines = path.read_text().splitlines()
            found |= {" ".join(s.split()) for s in lines if s.startswith(_ID_FIELDS)}
    return found


def await_release(*gone: Ids) -> None:
    """Returns when none of these objects is on the machine any more.

    The kernel frees them in workqueues, and tells nobody when.
    """
    programs = frozenset().union(*(ids.programs for ids in gone))
    maps = frozenset().union(*(ids.maps for ids in gone))
    links = frozenset().union(*(ids.links for ids in gone))

    def released() -> bool:
        now = machine()
        return not (now.programs & programs or now.maps & maps or now.links & links)

    eventually(released, f"none of {gone} left")


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
        assert generation.retire(RETIRE_TIMEOUT_S, lambda walked: walked.entries == 0)
        generation.remove()
