"""cgroup.py finds the cgroup2 mount, or says that there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockredird.errors import UnsupportedKernel
from sockredird.kernel import cgroup, mounts

NO_CGROUP2 = "22 1 0:20 / /proc rw - proc proc rw\n"


def test_the_root() -> None:
    point = cgroup.mount_point()
    assert mounts.filesystem_of(point) == "cgroup2"
    assert cgroup.resolve("/") == point


def test_without_cgroup2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(NO_CGROUP2)
    monkeypatch.setattr(mounts, "MOUNTINFO", table)
    with pytest.raises(UnsupportedKernel, match="mount -t cgroup2"):
        cgroup.mount_point()
