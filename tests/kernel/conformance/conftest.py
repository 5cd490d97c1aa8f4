"""The places, made once: a behaviour leaves nothing behind but counters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.conformance import places
from kernel.conformance.places import Accelerated, Plain, Textbook
from sockredird.datapath.generation import Generation
from support import cgroups, textbook
from support.datapath import plan, tear_down


@pytest.fixture(scope="session")
def plain(capable: None) -> Iterator[Plain]:
    cgroup = cgroups.create()
    yield Plain(cgroup)
    cgroups.remove(cgroup)


@pytest.fixture(scope="session")
def accelerated(bpffs: Path) -> Iterator[Accelerated]:
    cgroup = cgroups.create()
    generation = Generation.create(bpffs / "conformance", 1, plan(cgroup))
    with places.accelerated(cgroup, generation) as place:
        yield place
    cgroups.empty(cgroup)
    generation.close()
    tear_down(generation.directory)
    cgroups.remove(cgroup)


@pytest.fixture(scope="session")
def wrong(bpffs: Path) -> Iterator[Textbook]:
    cgroup = cgroups.create()
    with textbook.attached(bpffs / "textbook-conformance", cgroup) as members:
        yield Textbook(cgroup, members)
    cgroups.remove(cgroup)
