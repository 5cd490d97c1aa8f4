"""The cgroup2 mount, the cgroups in it, and their ids."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sockredird.errors import InvalidConfig, UnsupportedKernel
from sockredird.kernel.mounts import mounts


def mount_point() -> Path:
    """The directory where cgroup2 is mounted: /sys/fs/cgroup, or one below it on a hybrid host.

    Raises UnsupportedKernel if it is not mounted.
    """
    point = next((m.point for m in mounts() if m.filesystem == "cgroup2"), None)
    if point is None:
        raise UnsupportedKernel(
            "no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"
        )
    return point


def directory(cgroup: str) -> Path:
    """The directory of a cgroup named as in /proc/PID/cgroup ('/': the root); it need not exist."""
    return mount_point() / cgroup.lstrip("/")


def resolve(cgroup: str) -> Path:
    """Like directory(), but raises InvalidConfig if there is no such cgroup."""
    path = directory(cgroup)
    if ".." in path.parts or not (path / "cgroup.procs").exists():
        raise InvalidConfig(
            f"cgroup {cgroup} does not exist below {mount_point()}: check [scope] cgroup, "
            "or start the service it belongs to"
        )
    return path


def own() -> Path:
    """The directory of this process's cgroup. Raises UnsupportedKernel if that is not visible."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    name = next((line[3:] for line in lines if line.startswith("0::")), "")
    path = mount_point() / name.lstrip("/")
    # the cgroup may be outside the cgroup namespace, or outside the part that is mounted
    if not name or ".." in path.parts or not (path / "cgroup.procs").exists():
        raise UnsupportedKernel(f"the cgroup of this process, {name!r}, is not below {path}")
    return path


def outermost(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The cgroups that exist and are not below another one of `paths`.

    A program that is attached to a cgroup and to one below it would run twice for each socket.
    """
    there = {path for path in paths if (path / "cgroup.procs").exists()}
    return tuple(sorted(path for path in there if not there & {*path.parents}))


def cgroup_id(path: Path) -> int:
    """The id of a cgroup, as in struct bpf_link_info: its inode number (kernfs)."""
    return path.stat().st_ino


def is_cgroup(path: Path, number: int) -> bool:
    """Whether `path` is still the cgroup with this id, and was not removed or created again."""
    try:
        return cgroup_id(path) == number
    except FileNotFoundError:
        return False


class Names:
    """Paths of cgroups by id, as in /proc/PID/cgroup. All cgroups are read at the first question.

    open_by_handle_at(2) would find one by its id, but needs CAP_DAC_READ_SEARCH, which the daemon
    does not have.
    """

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}

    def path(self, number: int) -> str:
        """The path of a cgroup; empty if there is none with this id, or no longer."""
        if not self._paths:
            base = mount_point()
            self._paths[cgroup_id(base)] = "/"
            self._add(str(base), "")
        return self._paths.get(number, "")

    def unit(self, number: int) -> str:
        """The systemd unit that the cgroup belongs to; empty if it belongs to none."""
        parts = self.path(number).split("/")
        # the first one counts: above it are slices, and below it are cgroups that the service made
        return next((p for p in parts if p.endswith((".service", ".scope"))), "")

    def _add(self, directory: str, path: str) -> None:
        with suppress(OSError), os.scandir(directory) as entries:  # it was removed meanwhile
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below = f"{path}/{entry.name}"
                    self._paths[entry.inode()] = below
                    self._add(entry.path, below)


EXCLUDED_NAME_SIZE = 126  # bytes; a longer name, cut to fit, could equal another one
EXCLUDED_DEPTH = 16  # MAX_EXCLUDED_DEPTH in scope.h


def components(cgroup: str) -> list[str]:
    """The names on the path of a cgroup. Raises InvalidConfig if this cgroup cannot be excluded."""
    names = [name for name in cgroup.split("/") if name]
    if not names or not cgroup.startswith("/") or {".", ".."} & {*names} or "\0" in cgroup:
        raise InvalidConfig(
            f"scope.exclude_cgroups: {cgroup!r} is not the path of a cgroup below the root, "
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
