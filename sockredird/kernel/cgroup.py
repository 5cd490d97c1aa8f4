"""Finding cgroups: the cgroup2 mount, the id of a cgroup in it, and back from the id."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sockredird.errors import InvalidConfig, UnsupportedKernel
from sockredird.kernel.mounts import mounts


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


def directory(cgroup: str) -> Path:
    """Of a cgroup named as in /proc/PID/cgroup ('/' is the root), whether it exists or not."""
    return mount_point() / cgroup.lstrip("/")


def resolve(cgroup: str) -> Path:
    """As directory(). Raises InvalidConfig if there is no such cgroup."""
    path = directory(cgroup)
    if ".." in path.parts or not (path / "cgroup.procs").exists():
        raise InvalidConfig(
            f"cgroup {cgroup} does not exist below {mount_point()}: check [scope] cgroup, "
            "or start the service it belongs to"
        )
    return path


def own() -> Path:
    """The directory of this process's cgroup. Raises UnsupportedKernel if it cannot be told."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    name = next((line[3:] for line in lines if line.startswith("0::")), "")
    path = mount_point() / name.lstrip("/")
    # outside of the cgroup namespace, or of what is mounted of the hierarchy
    if not name or ".." in path.parts or not (path / "cgroup.procs").exists():
        raise UnsupportedKernel(f"the cgroup of this process, {name!r}, is not below {path}")
    return path


def outermost(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Those that exist, and are not below another: a program attached to both would run twice."""
    there = {path for path in paths if (path / "cgroup.procs").exists()}
    return tuple(sorted(path for path in there if not there & {*path.parents}))


def cgroup_id(path: Path) -> int:
    """The kernel's id of a cgroup, as bpf_link_info reports it: the inode number (kernfs)."""
    return path.stat().st_ino


def is_cgroup(path: Path, number: int) -> bool:
    """Whether the cgroup of this id is there, and not removed or made anew."""
    try:
        return cgroup_id(path) == number
    except FileNotFoundError:
        return False


class Names:
    """Paths of cgroups by id, as in /proc/PID/cgroup: of all there are when first asked.

    open_by_handle_at() would find one by its id, but takes a capability the daemon does without.
    """

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}

    def path(self, number: int) -> str:
        """Empty if there is no such cgroup (any more)."""
        if not self._paths:
            base = mount_point()
            self._paths[cgroup_id(base)] = "/"
            self._add(str(base), "")
        return self._paths.get(number, "")

    def unit(self, number: int) -> str:
        """The systemd unit that the cgroup belongs to; empty if to none."""
        parts = self.path(number).split("/")
        # a service may have cgroups of its own below; the slices above it are not it
        return next((p for p in parts if p.endswith((".service", ".scope"))), "")

    def _add(self, directory: str, path: str) -> None:
        with suppress(OSError), os.scandir(directory) as entries:  # removed meanwhile
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below = f"{path}/{entry.name}"
                    self._paths[entry.inode()] = below
                    self._add(entry.path, below)


EXCLUDED_NAME_SIZE = 126  # bytes; a longer name would look like another one once it is cut to fit
EXCLUDED_DEPTH = 16  # MAX_EXCLUDED_DEPTH in scope.h


def components(cgroup: str) -> list[str]:
    """The names on the path of a cgroup. Raises InvalidConfig if that cannot be excluded."""
    names = [name for name in cgroup.split("/") if name]
    if not names or not cgroup.startswith("/") or {".", ".."} & {*names} or "\0" in cgroup:
        raise InvalidConfig(
            f"scope.exclude_cgroups: {cgroup!r} is no path of a cgroup below the root, "
            "like /system.slice/haproxy.service"
        )
    if len(names) > EXCLUDED_DEPTH or any(
        len(name.encode()) > EXCLUDED_NAME_SIZE for name in names
    ):
        raise InvalidConfig(
            f"scope.exclude_cgroups: {cgroup!r} is deeper than {EXCLUDED_DEPTH} cgroups, or has a "
            f"name of more than {EXCLUDED_NAME_SIZE} bytes: exclude a cgroup above it"
        )
    return names
