"""cgroup.py finds cgroups below the cgroup2 mount, and nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockredird.errors import InvalidConfig, UnsupportedKernel
from sockredird.kernel import cgroup, mounts

NO_CGROUP2 = "22 1 0:20 / /proc rw - proc proc rw\n"


def test_the_root() -> None:
    point = cgroup.mount_point()
    assert mounts.filesystem_of(point) == "cgroup2"
    assert cgroup.resolve("/") == point


@pytest.mark.parametrize("named", ["/{}", "{}"])
def test_a_child(capable: None, other_cgroup: Path, named: str) -> None:
    assert cgroup.resolve(named.format(other_cgroup.name)) == other_cgroup
    assert cgroup.cgroup_id(other_cgroup) != cgroup.cgroup_id(cgroup.mount_point())


@pytest.mark.parametrize(
    "named",
    ["/there-is-none", "/..", "/../..", "/{}/..", "/cgroup.procs", "/{}/../../.."],
)
def test_what_is_no_cgroup(capable: None, other_cgroup: Path, named: str) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        cgroup.resolve(named.format(other_cgroup.name))
    assert named.format(other_cgroup.name) in str(refusal.value)


def test_without_cgroup2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(NO_CGROUP2)
    monkeypatch.setattr(mounts, "MOUNTINFO", table)
    with pytest.raises(UnsupportedKernel, match="mount -t cgroup2"):
        cgroup.mount_point()
