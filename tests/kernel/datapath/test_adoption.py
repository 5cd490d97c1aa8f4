"""A daemon that starts finds its datapath again, and recognises what is not its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sockredird.datapath.generation import Generation
from sockredird.errors import LoadFailed
from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.uapi import AttachType, MapType
from sockredird.loader import records
from support import pins
from support.datapath import plan, tear_down
from support.processes import inside
from support.traffic import connection, echo


@dataclass(frozen=True)
class Shape:
    type: MapType
    name: str
    key: int
    value: int
    entries: int


LEGITIMATE = Shape(MapType.LRU_HASH, "callers", 48, 32, 8192)
FOREIGN_MAPS = {
    "type": Shape(MapType.HASH, "callers", 48, 32, 8192),
    "key size": Shape(MapType.LRU_HASH, "callers", 52, 32, 8192),
    "value size": Shape(MapType.LRU_HASH, "callers", 48, 16, 8192),
    "entries": Shape(MapType.LRU_HASH, "callers", 48, 32, 4096),
    "name": Shape(MapType.LRU_HASH, "dialers", 48, 32, 8192),
}


@pytest.fixture
def second(bpffs: Path, other_cgroup: Path) -> Iterator[Generation]:
    """A generation like the one under test, over another cgroup."""
    made = Generation.create(bpffs / "second", 1, plan(other_cgroup))
    yield made
    made.close()
    tear_down(made.directory)


@contextmanager
def refused(generation: Generation, culprit: str) -> Iterator[None]:
    """What the with block leaves behind is refused by name, and left as it is."""
    yield
    before = pins.ids(generation.directory)
    with pytest.raises(LoadFailed) as refusal:
        Generation.adopt(generation.directory)
    assert str(generation.directory / culprit) in str(refusal.value)
    assert pins.ids(generation.directory) == before


@inside()
def test_the_same_objects_are_found(cgroup: Path, generation: Generation) -> None:
    found = pins.ids(generation.directory)
    with connection() as both:
        echo(both, 10)
        adopted = Generation.adopt(generation.directory)
        assert pins.ids(adopted.directory) == found
        assert adopted.manifest == generation.manifest
        assert adopted.attached
        assert not adopted.stopped
        assert adopted.counters() == generation.counters()
        echo(both, 10)
        with connection() as another:
            echo(another, 10)
        counters = adopted.counters()
        assert counters["accelerated_connections"] == 2
        assert counters["redirected_messages"] == 60
        assert adopted.members.walk().connections == 1


def test_a_stopped_one_is_found_stopped(generation: Generation) -> None:
    generation.stop()
    adopted = Generation.adopt(generation.directory)
    assert adopted.stopped
    assert adopted.attached  # for the sockets that are still on the sockhash


@pytest.mark.parametrize("shape", FOREIGN_MAPS.values(), ids=FOREIGN_MAPS)
def test_a_foreign_map(generation: Generation, shape: Shape) -> None:
    path = generation.directory / "callers"
    with (
        pins.put_aside(path),
        refused(generation, "callers"),
        pins.new_map(shape.type, shape.name, shape.key, shape.value, shape.entries) as fd,
    ):
        libbpf.pin(fd, path)


def test_a_twin_of_a_map(generation: Generation) -> None:
    """Alike in every size and in name, but no program of ours uses it."""
    shape = LEGITIMATE
    path = generation.directory / "callers"
    with pins.put_aside(path), pytest.raises(LoadFailed, match="on other maps"):
        with pins.new_map(shape.type, shape.name, shape.key, shape.value, shape.entries) as fd:
            libbpf.pin(fd, path)
        Generation.adopt(generation.directory)


@pytest.mark.parametrize("name", ["pair", "redirect", "walk", "peers", "sockets", "members"])
def test_a_missing_pin(generation: Generation, name: str) -> None:
    with pins.put_aside(pins.path(generation.directory, name)) as aside:
        with refused(generation, name):
            pass
        assert aside.exists()


def test_an_extra_pin(generation: Generation) -> None:
    extra = generation.directory / "zebra"
    with refused(generation, "zebra"), libbpf.open_pin(generation.directory / "peers") as fd:
        libbpf.pin(fd, extra)
    extra.unlink()


@pytest.mark.parametrize(
    ("name", "impostor"),
    [
        ("pair", "redirect"),  # a program of another type
        ("redirect", "pair"),
        ("walk", "peers"),  # a map where a program belongs
        ("peers", "pair"),  # and the other way round
        ("sockets", "callers"),
        ("members", "pair"),
        ("members", "attached"),  # a link of another type
        ("attached", "members"),
        ("attached", "peers"),
    ],
)
def test_an_object_of_ours_in_the_wrong_place(
    generation: Generation, name: str, impostor: str
) -> None:
    path = pins.path(generation.directory, name)
    with (
        libbpf.open_pin(pins.path(generation.directory, impostor)) as fd,
        pins.put_aside(path),
        refused(generation, path.name),
    ):
        libbpf.pin(fd, path)


@pytest.mark.parametrize("name", ["pair", "redirect", "walk", "peers", "members", "attached"])
def test_an_object_of_another_generation(
    generation: Generation, second: Generation, name: str
) -> None:
    """Type, tag and sizes are the same; only the maps and links that it belongs to differ."""
    path = pins.path(generation.directory, name)
    # of two programs and maps that do not belong together, either may be called the culprit
    culprit = {"redirect": "", "peers": "", "walk": ""}.get(name, path.name)
    with (
        libbpf.open_pin(pins.path(second.directory, name)) as fd,
        pins.put_aside(path),
        refused(generation, culprit),
    ):
        libbpf.pin(fd, path)


def test_a_link_to_another_cgroup(generation: Generation, other_cgroup: Path) -> None:
    path = pins.path(generation.directory, "attached")
    with (
        pins.put_aside(path),
        refused(generation, path.name),
        libbpf.open_pin(generation.directory / "pair") as program,
        Fd(os.open(other_cgroup, os.O_RDONLY | os.O_DIRECTORY)) as target,
        libbpf.create_cgroup_link(program, target, AttachType.CGROUP_SOCK_OPS) as link,
    ):
        libbpf.pin(link, path)


def test_a_sockhash_without_its_program(generation: Generation) -> None:
    with (
        libbpf.open_pin(generation.directory / "redirect") as program,
        libbpf.open_pin(generation.directory / "peers") as sockhash,
    ):
        detach = ctypes.CDLL("libbpf.so.1").bpf_prog_detach2
        with refused(generation, "peers"):
            assert detach(program.number, sockhash.number, int(AttachType.SK_MSG_VERDICT)) == 0
        libbpf.attach_sk_msg(program, sockhash)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b'"notes"',
        {"layout": 0},
        {"layout": 1, "tags": {}, "max_connections": 1},
        {"layout": 1, "tags": [], "max_connections": 65536},
        {"layout": 1, "tags": {}, "max_connections": "many"},
        {"layout": 1, "max_connections": 65536},
    ],
    ids=repr,
)
def test_unreadable_notes(generation: Generation, content: dict[str, object] | bytes) -> None:
    before = pins.write_manifest(generation.directory, content)
    try:
        with refused(generation, ""):
            pass
    finally:
        pins.write_manifest(generation.directory, before)


CAUSES: dict[str, tuple[Any, bool]] = {
    "of a version that knew fewer": (records.CAUSES[:-1], True),
    "of a version that knows more": ((*records.CAUSES, "weather"), False),
    "in another order": ((*records.CAUSES[:-2], *records.CAUSES[:-3:-1]), False),
    "one in the middle": ((*records.CAUSES[:-1], "weather", records.CAUSES[-1]), False),
    "none": ((), False),
    "another type": (7, False),
}


@pytest.mark.parametrize(("causes", "adopted"), CAUSES.values(), ids=CAUSES)
def test_causes_have_the_same_numbers(generation: Generation, causes: Any, adopted: bool) -> None:
    before = pins.write_manifest(generation.directory, {**generation.manifest, "causes": causes})
    try:
        if adopted:
            Generation.adopt(generation.directory).close()
        else:
            with refused(generation, "manifest"):
                pass
    finally:
        pins.write_manifest(generation.directory, before)


def test_without_cgroups_in_the_notes(generation: Generation) -> None:
    notes = {name: value for name, value in generation.manifest.items() if name != "cgroups"}
    before = pins.write_manifest(generation.directory, notes)
    try:
        with refused(generation, ""):
            pass
    finally:
        pins.write_manifest(generation.directory, before)
