"""Sockets of excluded cgroups, and of those below, are left alone (I6)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockredird.datapath.excluded_cgroups import steps
from sockredird.datapath.generation import Generation
from sockredird.errors import InvalidConfig
from sockredird.loader.header import record
from sockredird.loader.records import EXCLUDED, text
from support import cgroups
from support.datapath import plan, tear_down
from support.processes import outside
from support.traffic import Connection, check_native, dial, echo, listen

_numbers = itertools.count(1)
EXCLUDED_NAMES = ("no.service", "some/of/these.slice")
# (where the client is, where the listener is, whether neither is excluded)
PLACES = [
    ("yes.service", "yes.service", True),
    (".", "yes.service", True),
    ("no.service", "yes.service", False),
    ("yes.service", "no.service", False),
    ("no.service", "no.service", False),
    ("no.service/below", "yes.service", False),
    ("yes.service", "no.service/below/that", False),
    ("no.service2", "no.servic", True),
    ("some/of", "some", True),
    ("some/of/these.slice", "some/of", False),
    ("some/of", "some/of/these.slice/run-1.scope", False),
    ("of/these.slice", "these.slice", True),
]


@pytest.fixture
def excluding(bpffs: Path, cgroup: Path) -> Iterator[Generation]:
    """Made while none of the excluded cgroups exists."""
    excluded = tuple(f"/{cgroup.name}/{name}" for name in EXCLUDED_NAMES)
    generation = Generation.create(
        bpffs / "excluding", next(_numbers), plan(cgroup, exclude_cgroups=excluded)
    )
    yield generation
    generation.close()
    tear_down(generation.directory)
    for directory, _, _ in os.walk(cgroup, topdown=False):
        if Path(directory) != cgroup:
            Path(directory).rmdir()


def check(generation: Generation, client_in: Path, server_in: Path, accelerated: bool) -> None:
    before = generation.counters()
    cgroups.join(server_in)
    with listen() as listener:
        cgroups.join(client_in)
        client = dial(listener)
        both = Connection(client, listener.accept()[0])
    echo(both, 50)
    change = {n: v - before[n] for n, v in generation.counters().items() if v != before[n]}
    if accelerated:
        assert change["accelerated_connections"] == 1
        assert change["redirected_messages"] == 100
    else:
        assert generation.members.walk().entries == 0
        assert change.keys() <= {"declined_peer_outside"}
        check_native(both.client, both.server)
        check_native(both.server, both.client)
    both.close()


@outside()
def test_each_place(cgroup: Path, other_cgroup: Path, excluding: Generation) -> None:
    for client, server, accelerated in PLACES:
        for name in (client, server):
            (cgroup / name).mkdir(parents=True, exist_ok=True)
        check(excluding, cgroup / client, cgroup / server, accelerated)
    cgroups.join(other_cgroup)


@outside()
def test_made_anew(cgroup: Path, other_cgroup: Path, excluding: Generation) -> None:
    """As a service's cgroup is at each start: another id under the same name."""
    excluded, kept = cgroup / "no.service", cgroup / "yes.service"
    kept.mkdir()
    ids = set()
    for _ in range(3):
        excluded.mkdir()
        ids.add(excluded.stat().st_ino)
        check(excluding, kept, excluded, accelerated=False)
        check(excluding, kept, kept, accelerated=True)
        excluded.rmdir()
    assert len(ids) == 3
    cgroups.join(other_cgroup)


def test_steps() -> None:
    step = {}
    for key, leads_to in steps(["/a/b", "/a", "/a/c/d", "/x/y/z", "/x/y//w/"]).items():
        found = record("step").unpack(key)
        step[found.directory, text(found.name)] = leads_to
    assert step[0, "a"] == EXCLUDED
    assert step[0, "x"] != EXCLUDED
    y = step[step[0, "x"], "y"]
    assert step[y, "z"] == step[y, "w"] == EXCLUDED


def test_too_many() -> None:
    with pytest.raises(InvalidConfig, match="exclude_cgroups"):
        steps(f"/{number}" for number in range(2000))
