"""cgroup.py finds cgroups below the cgroup2 mount, and nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockredird.errors import InvalidConfig
from sockredird.kernel import cgroup


@pytest.mark.parametrize("named", ["/{}", "{}"])
def test_a_child(other_cgroup: Path, named: str) -> None:
    assert cgroup.resolve(named.format(other_cgroup.name)) == other_cgroup
    assert cgroup.cgroup_id(other_cgroup) != cgroup.cgroup_id(cgroup.mount_point())


@pytest.mark.parametrize(
    "named",
    ["/there-is-none", "/..", "/../..", "/{}/..", "/cgroup.procs", "/{}/../../.."],
)
def test_what_is_no_cgroup(other_cgroup: Path, named: str) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        cgroup.resolve(named.format(other_cgroup.name))
    assert named.format(other_cgroup.name) in str(refusal.value)
