"""Creating a generation succeeds, or leaves everything as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from sockredird.errors import LoadFailed
from support import pins
from support.datapath import plan
from support.processes import inside
from support.traffic import connection, echo


def number_of(generation: Generation) -> int:
    return int(generation.directory.name.rpartition("-")[2])


@inside()
def test_a_number_in_use(cgroup: Path, generation: Generation) -> None:
    """The generation that has the number stays alive."""
    root = generation.directory.parent
    before = pins.ids(generation.directory)
    with pytest.raises(LoadFailed):
        Generation.create(root, number_of(generation), plan(cgroup))
    assert [path.name for path in root.iterdir()] == [generation.directory.name]
    assert pins.ids(generation.directory) == before
    with connection() as both:
        echo(both, 10)
    assert generation.counters()["redirected_messages"] == 20


def test_a_staging_directory_of_somebody(bpffs: Path, cgroup: Path) -> None:
    root = bpffs / "with-staging"
    theirs = root / "staging-1"
    theirs.mkdir(parents=True)
    with pytest.raises(LoadFailed):
        Generation.create(root, 1, plan(cgroup))
    assert list(root.iterdir()) == [theirs]


def test_no_such_cgroup(bpffs: Path, cgroup: Path) -> None:
    root = bpffs / "without-cgroup"
    with pytest.raises(LoadFailed):
        Generation.create(root, 1, plan(cgroup / "gone"))
    assert not root.exists() or not list(root.iterdir())


def test_a_limit_the_kernel_refuses(bpffs: Path, cgroup: Path) -> None:
    root = bpffs / "too-large"
    with pytest.raises(LoadFailed):
        Generation.create(root, 1, plan(cgroup, max_connections=1 << 31))
    assert not root.exists() or not list(root.iterdir())
