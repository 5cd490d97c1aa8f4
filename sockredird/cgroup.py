"""Finding cgroups: the cgroup2 mount, the id of a cgroup in it, and back from the id."""

from __future__ import annotations

import ctypes
import os
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


class _FileHandle(ctypes.Structure):
    """struct file_handle of kernfs, open_by_handle_at(2)."""

    _fields_ = [
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("id", ctypes.c_uint64),
    ]


_FILEID_KERNFS = 0xFE
_libc = ctypes.CDLL(None, use_errno=True)


class Names:
    """Paths of cgroups by id, as in /proc/PID/cgroup; remembers what it was asked."""

    def __init__(self) -> None:
        self._base = mount_point()
        self._known: dict[int, str] = {}

    def path(self, number: int) -> str:
        """Empty if the cgroup is gone."""
        if number not in self._known:
            self._known[number] = self._find(number)
        return self._known[number]

    def unit(self, number: int) -> str:
        """The systemd unit that the cgroup belongs to; empty if to none."""
        parts = self.path(number).split("/")
        # a service may have cgroups of its own below; the slices above it are not it
        return next((p for p in parts if p.endswith((".service", ".scope"))), "")

    def _find(self, number: int) -> str:
        handle = _FileHandle(8, _FILEID_KERNFS, number)
        mount = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd = _libc.open_by_handle_at(mount, ctypes.byref(handle), flags)
        finally:
            os.close(mount)
        if fd < 0:
            return ""
        try:
            path = Path(f"/proc/self/fd/{fd}").readlink()
            return "/" + str(path.relative_to(self._base)).removeprefix(".")
        except ValueError:
            return ""
        finally:
            os.close(fd)
