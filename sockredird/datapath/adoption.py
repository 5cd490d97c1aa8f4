"""Opens what is pinned in a generation's directory, after checking that it is ours.

Pins outlive the daemon that made them, and a directory on a bpffs can hold anything: every id,
type, tag, size and attach point is compared with what this version creates.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

from sockredird.datapath import detectors, links, visits
from sockredird.datapath.links import refuse
from sockredird.datapath.plan import LAYOUT_VERSION
from sockredird.datapath.visits import MEMBERS
from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.uapi import MapType
from sockredird.loader.header import record
from sockredird.loader.records import CAUSES
from sockredird.loader.shapes import PROGRAMS, SUBSTITUTES, map_shapes

MAPS = frozenset(map_shapes(1, resource.getpagesize()))
PIN_NAMES = {*PROGRAMS, *MAPS, MEMBERS}
_ZERO = bytes(4)


def is_ours(directory: Path) -> bool:
    """Whether a staging directory holds nothing but names that generations pin."""
    return all(
        p.name in PIN_NAMES or links.is_link(p.name) or detectors.is_detector(p.name)
        for p in directory.iterdir()
    )


def open_checked(directory: Path) -> tuple[dict[str, Fd], dict[str, Any]]:
    """Descriptors of a generation's programs and maps by name, and its manifest.

    Raises LoadFailed naming the first object that differs and how, or OSError.
    """
    check_names(directory)
    paths = [path for path in directory.iterdir() if path.name in PIN_NAMES]
    pins = {path.name: libbpf.open_pin(path) for path in paths}
    for name, fd in pins.items():
        kind = "prog" if name in PROGRAMS else "link" if name == MEMBERS else "map"
        if libbpf.object_kind(fd) != kind:
            raise refuse(directory / name, libbpf.object_kind(fd), kind)
    manifest = _check_maps(directory, pins)
    _check_programs(directory, pins, manifest)
    check_links(directory, pins, manifest)
    return pins, manifest


def check_names(directory: Path) -> None:
    """Raises LoadFailed unless the directory holds all of PIN_NAMES and nothing strange.

    MEMBERS may be missing: check_links() looks whether it belongs there.
    """
    names = {p.name for p in directory.iterdir()}
    for name in sorted(names - PIN_NAMES):
        if not (links.is_link(name) or detectors.is_detector(name)):
            raise refuse(directory / name, "a pin", "no such name")
    for name in sorted(PIN_NAMES - names - {MEMBERS}):
        raise refuse(directory / name, "no pin", "one")


def _check_maps(directory: Path, pins: dict[str, Fd]) -> dict[str, Any]:
    path = directory / "manifest"
    info = libbpf.map_info(pins["manifest"])
    size = record("manifest").size
    if (info.type, info.value_size) != (MapType.ARRAY, size):
        raise refuse(path, f"a map of {info.value_size} bytes", f"an array of {size}")
    try:
        text = libbpf.lookup(pins["manifest"], _ZERO, size).rstrip(b"\0")
        manifest: dict[str, Any] = json.loads(text)
        layout = manifest["layout"]
        shapes = map_shapes(int(manifest["max_connections"]), resource.getpagesize())
        manifest["tags"].items()
        manifest["detectors"].items()
        [int(number) for number in manifest["cgroups"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refuse(path, f"an unreadable manifest ({error!r})", "one of sockredird") from error
    if layout != LAYOUT_VERSION:
        raise refuse(path, f"layout {layout}", f"layout {LAYOUT_VERSION}")
    causes = manifest.get("causes")
    # an older version may know fewer, but its counters have the same numbers
    if not isinstance(causes, list) or not causes or tuple(causes) != CAUSES[: len(causes)]:
        raise refuse(path, "causes with other numbers", "those of bpf/causes.h")
    for name, shape in shapes.items():
        info = libbpf.map_info(pins[name])
        found = (info.type, info.key_size, info.value_size, info.max_entries)
        expected = (shape.type, shape.key_size, shape.value_size, shape.max_entries)
        if found != expected or info.name.decode() != name:
            raise refuse(
                directory / name,
                f"map {info.name.decode()!r} (type, key, value, entries) = {found}",
                f"{name!r} {tuple(map(int, expected))}",
            )
    return manifest


def _check_programs(directory: Path, pins: dict[str, Fd], manifest: dict[str, Any]) -> None:
    maps = {libbpf.map_info(pins[name]).id for name in MAPS}
    for name, shape in PROGRAMS.items():
        found = (libbpf.prog_info(pins[name]).type, libbpf.prog_tag(pins[name]))
        tag = manifest["tags"].get(name)
        expected = (int(shape.kind), tag)
        substitute = SUBSTITUTES.get(name, shape)
        if found not in (expected, (int(substitute.kind), tag)):
            raise refuse(directory / name, f"program (type, tag) = {found}", expected)
        if not libbpf.prog_map_ids(pins[name]) <= maps:
            raise refuse(directory / name, "a program on other maps", "those pinned beside it")
    redirect = libbpf.prog_info(pins["redirect"]).id
    attached = libbpf.attached_sk_msg(pins["peers"])
    if attached != redirect:
        raise refuse(directory / "peers", f"sk_msg program {attached}", f"program {redirect}")


def check_links(directory: Path, pins: dict[str, Fd], manifest: dict[str, Any]) -> None:
    """Raises LoadFailed unless the iterator, and the other links there are, are as made."""
    there, iterates = (directory / MEMBERS).exists(), visits.iterates(pins["walk"])
    if there != iterates:
        answers = {True: "one", False: "no pin"}
        raise refuse(directory / MEMBERS, answers[there], answers[iterates])
    if iterates:
        found, expected = visits.link_of(pins)
        if found != expected:
            raise refuse(directory / MEMBERS, f"link (type, program, map) = {found}", expected)
    links.check(directory, pins)
    detectors.check(directory, manifest)
