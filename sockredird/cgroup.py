"""Finding cgroups: the cgroup2 mount and the id of a cgroup in it."""

from __future__ import annotations

from pathlib import Path

from sockredird.errors import InvalidConfig, UnsupportedKernel
from sockredird.mounts import mounts


def mount_point() -> Path:
    """Where cgroup2 is mounted: /sys/fs/cgroup, or below it on a hybrid host.

    Raises UnsupportedKernel if it is not mounted.
    """
    point = next((m.point for m in mounts() if m.filesystem == "cgroup2"), None)
    if point is None:
        raise UnsupportedKernel(
            "no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"
        )
    return point


def resolve(cgroup: str) -> Path:
    """The directory of a cgroup named as in /proc/PID/cgroup ('/' is the root).

    Raises InvalidConfig if there is no such cgroup.
    """
    base = mount_point()
    path = base / cgroup.lstrip("/")
    if ".." in path.parts or not (path / "cgroup.procs").exists():
        raise InvalidConfig(f"cgroup {cgroup} does not exist below {base}: check [scope] cgroup")
    return path


def cgroup_id(path: Path) -> int:
    """The kernel's id of a cgroup, as bpf_link_info reports it: the inode number (kernfs)."""
    return path.stat().st_ino
